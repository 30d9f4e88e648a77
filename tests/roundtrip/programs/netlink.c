/* netlink sockets: port, groups, options, filters; they ask, and hear of the kernel's news. */
#include "wait.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

enum { HIGH_GROUP = RTNLGRP_NSID };

/* Ask for all links and count what is told. */
static int links(int fd) {
	struct { struct nlmsghdr head; struct rtgenmsg ask; } request = {{.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtgenmsg)), .nlmsg_type = RTM_GETLINK,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 7}, {.rtgen_family = AF_UNSPEC}};
	static char answer[1 << 16] __attribute__((aligned(8)));
	int found = 0;
	must(send(fd, &request, request.head.nlmsg_len, 0));
	for (;;) {
		int got = must(recv(fd, answer, sizeof answer, 0));
		for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, (unsigned)got); one = NLMSG_NEXT(one, got)) {
			if (one->nlmsg_type == NLMSG_DONE)
				return found;
			found += one->nlmsg_type == RTM_NEWLINK;
		}
	}
}

static int is_member(int fd, int group) {
	unsigned words[8] = {0};
	socklen_t length = sizeof words;
	must(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &length));
	return words[(group - 1) / 32] >> ((group - 1) % 32) & 1;
}

int main(void) {
	struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = 4711, .nl_groups = RTMGRP_LINK}, found = {0};
	socklen_t length = sizeof found;
	int bound = must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)), asking = must(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE)),
		fresh = must(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE)), value = 0;
	must(bind(bound, (void *)&name, sizeof name));
	must(setsockopt(bound, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &(int){HIGH_GROUP}, sizeof(int)));
	must(setsockopt(bound, SOL_NETLINK, NETLINK_EXT_ACK, &(int){1}, sizeof(int)));
	must(setsockopt(bound, SOL_SOCKET, SO_RCVBUF, &(int){100000}, sizeof(int)));
	must(setsockopt(bound, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	int before = links(asking);
	must(getsockname(asking, (void *)&found, &length));
	unsigned port = found.nl_pid;

	freeze_here();
	spoil(must(setsockopt(bound, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &(int){HIGH_GROUP}, sizeof(int))););

	must(getsockname(bound, (void *)&found, &length));
	same("the port", 4711, found.nl_pid);
	same("the groups", RTMGRP_LINK, found.nl_groups & RTMGRP_LINK);
	same("a high group", 1, is_member(bound, HIGH_GROUP));
	same("another group", 0, is_member(bound, RTNLGRP_NEIGH));
	length = sizeof value;
	must(getsockopt(bound, SOL_NETLINK, NETLINK_EXT_ACK, &value, &length));
	same("NETLINK_EXT_ACK", 1, value);
	must(getsockopt(bound, SOL_SOCKET, SO_PASSCRED, &value, &length));
	same("SO_PASSCRED", 1, value);
	must(getsockopt(bound, SOL_SOCKET, SO_RCVBUF, &value, &length));
	same("SO_RCVBUF", 200000, value);
	length = sizeof found;
	must(getsockname(asking, (void *)&found, &length));
	same("the port of the one that asks", port, found.nl_pid);
	same("links", before, links(asking));
	same("flags", O_RDWR | O_NONBLOCK, fcntl(fresh, F_GETFL));
	same("close-on-exec", FD_CLOEXEC, fcntl(bound, F_GETFD));
	return report();
}

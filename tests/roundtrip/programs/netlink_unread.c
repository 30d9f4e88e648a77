/* netlink: news that nobody has read are there, or the socket says that they are lost (ENOBUFS); then it hears of others. */
// capabilities: CAP_NET_ADMIN
#include "wait.h"
#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>

/* Give the loopback device an address more, or take it away. */
static void address(int type) {
	struct { struct nlmsghdr head; struct ifaddrmsg one; struct rtattr local; uint32_t number; } request = {{.nlmsg_len = sizeof request, .nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | (type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_EXCL : 0)},
		{.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = if_nametoindex("lo")}, {.rta_len = RTA_LENGTH(4), .rta_type = IFA_LOCAL}, inet_addr("127.9.9.9")};
	struct { struct nlmsghdr head; struct nlmsgerr error; char rest[256]; } answer;
	int fd = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	must(send(fd, &request, sizeof request, 0));
	must(recv(fd, &answer, sizeof answer, 0));
	same("the answer", 0, answer.error.error);
	close(fd);
}

/* Return the next message's type, what the socket says instead, or 0 if it says nothing. */
static int next(int fd) {
	static char message[8192] __attribute__((aligned(8)));
	if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 1000) != 1)
		return 0;
	return recv(fd, message, sizeof message, MSG_DONTWAIT) < 0 ? -errno : ((struct nlmsghdr *)message)->nlmsg_type;
}

int main(void) {
	struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = 4712, .nl_groups = RTMGRP_IPV4_IFADDR};
	int fd = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)), value = 0, found, usual = 0;
	socklen_t length = sizeof value;
	must(bind(fd, (void *)&name, sizeof name));
	must(getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &usual, &length));
	address(RTM_NEWADDR);

	freeze_here();
	spoil(next(fd););

	found = next(fd);
	expect(found == RTM_NEWADDR || found == -ENOBUFS, "neither the news nor the word that they are lost, but %d", found);
	must(getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &length));
	same("SO_RCVBUF", usual, value);
	while (next(fd) > 0)
		;
	address(RTM_DELADDR);
	same("other news", RTM_DELADDR, next(fd));
	return report();
}

/* Errors that wait at UDP sockets: what the next call returns, what is told of each (IP_RECVERR), and the datagrams behind. */
// arguments: 4 | 6
#include "loopback.h"
#include <linux/errqueue.h>
#include <poll.h>

enum { SOCKETS = 6, MOST = 4 };

static int bound(int port, bool asks) {
	union address name = at(port);
	int fd = must(socket(name.any.sa_family, SOCK_DGRAM, 0));
	must(bind(fd, &name.any, size));
	if (asks)
		must(setsockopt(fd, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_RECVERR : IPV6_RECVERR, &(int){1}, sizeof(int)));
	return fd;
}

static int error_of(int fd) {
	int value = -1;
	must(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &(socklen_t){sizeof value}));
	return value;
}

/* Send to a port at which nobody is, and wait until that is told, or take that. */
static void in_vain(int from, int port, const char *data, bool connected, bool taken) {
	union address name = at(port);
	must(sendto(from, data, strlen(data), 0, connected ? NULL : &name.any, connected ? 0 : size));
	must(poll(&(struct pollfd){.fd = from}, 1, 10000));
	while (taken && !error_of(from))
		sched_yield();
}

/* All that is told of the first error, as text; false if none is told. */
static bool told(int fd, char *text) {
	char data[64] = {0}, control[512] __attribute__((aligned(8)));
	union address to = {0};
	struct iovec piece = {data, sizeof data - 1};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (recvmsg(fd, &message, MSG_DONTWAIT | MSG_ERRQUEUE) < 0)
		return false;
	text += sprintf(text, "%s to", data);
	for (socklen_t i = 0; i < size; i++)
		text += sprintf(text, " %02x", ((unsigned char *)&to)[i]);
	for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one)) {
		text += sprintf(text, "\n\t%d/%d:", one->cmsg_level, one->cmsg_type);
		for (unsigned i = 0; i < one->cmsg_len - CMSG_LEN(0); i++)
			text += sprintf(text, " %02x", CMSG_DATA(one)[i]);
	}
	return true;
}

static int make(int which) {
	union address peer = at(6310);
	int fd = bound(6300 + which, which != 0);
	if (which == 0) {
		/* connected; what the peer had sent waits behind the error */
		int other = bound(6310, false);
		union address name = at(6300);
		must(connect(fd, &peer.any, size));
		must(sendto(other, "behind", 6, 0, &name.any, size));
		must(close(other));
		in_vain(fd, 6310, "refused", true, false);
		return fd;
	}
	if (which == 4) {
		/* at all addresses */
		must(close(fd));
		fd = must(socket(peer.any.sa_family, SOCK_DGRAM, 0));
		must(setsockopt(fd, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_RECVERR : IPV6_RECVERR, &(int){1}, sizeof(int)));
	}
	if (which == 5)
		must(connect(fd, &peer.any, size));
	in_vain(fd, which == 5 ? 6310 : 6320, "the first", which == 5, which == 2 || which == 3);
	if (which == 3) {
		in_vain(fd, 6321, "the second", false, true);
		in_vain(fd, 6322, "the third", false, true);
		told(fd, (char[1000]){0});
	}
	return fd;
}

int main(int count, char **arguments) {
	four = count > 1 && arguments[1][0] == '4';
	size = four ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);

	/* What is seen of these is what must be seen later of others that are made likewise. */
	int fds[SOCKETS], errors[SOCKETS], counts[SOCKETS] = {0};
	static char was[SOCKETS][MOST][1000], is[1000];
	for (int i = 0; i < SOCKETS; i++) {
		int first = make(i);
		errors[i] = error_of(first);
		while (counts[i] < MOST && told(first, was[i][counts[i]]))
			counts[i]++;
		must(close(first));
		fds[i] = make(i);
	}
	same("an error that waits", ECONNREFUSED, errors[0]);
	same("one that was asked for", 0, errors[2]);
	same("errors told to the third", 2, counts[3]);

	freeze_here();
	spoil(error_of(fds[0]););

	for (int i = 0; i < SOCKETS; i++) {
		expect(poll(&(struct pollfd){.fd = fds[i]}, 1, 0) == 1, "socket %d has no error", i);
		int error = error_of(fds[i]), found = 0;
		expect(error == errors[i], "socket %d: the error was %d, is %d", i, errors[i], error);
		for (; found < MOST && told(fds[i], is); found++)
			expect(!strcmp(was[i][found], is), "socket %d: was %s, is %s", i, was[i][found], is);
		expect(found == counts[i], "socket %d: %d errors were told, %d are", i, counts[i], found);
	}
	char data[16] = {0};
	same("what waits behind an error", 6, recv(fds[0], data, sizeof data, MSG_DONTWAIT));
	same("it", 0, strcmp(data, "behind"));
	in_vain(fds[0], 6310, "again", true, false);
	same("a new error", ECONNREFUSED, error_of(fds[0]));
	return report();
}

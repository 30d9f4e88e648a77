/* How datagrams came that wait: to which address, by which device, with which head; and those sent to groups, of which each member has its own. */
// arguments: 4 | 6
// capabilities: CAP_NET_ADMIN CAP_NET_RAW
#include "network.h"
#include <sys/socket.h>

enum { SOCKETS = 7, MOST = 12 };
union name { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; };
static bool four;
static int family;
static socklen_t size;

static union name at(const char *text, int port) {
	union name made = {.any.sa_family = family};
	must(inet_pton(family, text, four ? (void *)&made.four.sin_addr : &made.six.sin6_addr) == 1 ? 0 : -1);
	made.four.sin_port = htons(port); /* that of IPv6 is at the same place */
	if (!four && (!strncmp(text, "fe80", 4) || !strncmp(text, "ff02", 4)))
		made.six.sin6_scope_id = index_of("w0");
	return made;
}

static void set(int fd, int level, int name, int value) {
	must(setsockopt(fd, level, name, &value, sizeof value));
}

static int hears(const char *text, int port, const char *device, bool asks) {
	union name name = at(text, port);
	int fd = must(socket(family, SOCK_DGRAM, 0));
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (device)
		must(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device) + 1));
	must(bind(fd, &name.any, size));
	int told[] = {IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVORIGDSTADDR};
	int told6[] = {IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_RECVORIGDSTADDR, IPV6_FLOWINFO};
	for (int i = 0; asks && i < (four ? 4 : 5); i++)
		set(fd, four ? IPPROTO_IP : IPPROTO_IPV6, four ? told[i] : told6[i], 1);
	return fd;
}

static void enter(int fd, const char *text) {
	struct group_req one = {.gr_interface = index_of("w0")};
	union name name = at(text, 0);
	memcpy(&one.gr_group, &name, size);
	must(setsockopt(fd, four ? IPPROTO_IP : IPPROTO_IPV6, MCAST_JOIN_GROUP, &one, sizeof one));
}

static void send_to(int from, const char *text, int port, const char *data) {
	union name name = at(text, port);
	same("sending", strlen(data), sendto(from, data, strlen(data), 0, &name.any, size));
}

/* All that is told of what waits first, or is next to be looked at, as text; false if nothing waits. */
static bool receive(int fd, int flags, char *told) {
	char data[64] = {0}, control[512] __attribute__((aligned(8)));
	union name from = {0};
	struct iovec piece = {data, sizeof data - 1};
	struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (recvmsg(fd, &message, MSG_DONTWAIT | flags) < 0)
		return false;
	told += sprintf(told, "%s from", data);
	for (socklen_t i = 0; i < size; i++)
		told += sprintf(told, " %02x", ((unsigned char *)&from)[i]);
	for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one)) {
		if (one->cmsg_level == IPPROTO_IP && one->cmsg_type == IP_PKTINFO)
			memset(CMSG_DATA(one) + 4, 0, 4); /* from where to answer: not told of groups */
		told += sprintf(told, "\n\t%d/%d:", one->cmsg_level, one->cmsg_type);
		for (unsigned i = 0; i < one->cmsg_len - CMSG_LEN(0); i++)
			told += sprintf(told, " %02x", CMSG_DATA(one)[i]);
	}
	return true;
}

static char was[SOCKETS][MOST][1000], is[MOST][1000];

int main(int count, char **arguments) {
	four = count > 1 && arguments[1][0] == '4';
	family = four ? AF_INET : AF_INET6, size = four ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	new_veth("w0", 0, "w1", 0), up("w0"), up("w1");
	address("w0", four ? "10.77.0.1" : "fd77::1", four ? 24 : 64);
	if (four)
		put_ip(IFA_BROADCAST, "10.77.0.255");
	ask();
	if (!four)
		address("w0", "fe80::77", 64), ask();
	close_routing();
	const char *own = four ? "10.77.0.1" : "fd77::1", *all = four ? "0.0.0.0" : "::", *loop = four ? "127.0.0.1" : "::1";
	const char *group = four ? "239.77.0.1" : "ff05::77", *near = four ? "10.77.0.255" : "fe80::77";

	settle();

	int fds[SOCKETS] = {
		hears(all, 6200, NULL, true),
		hears(group, 6201, NULL, true), hears(group, 6201, NULL, false),
		hears(all, 6202, "w0", true),
		hears(near, 6203, four ? NULL : "w0", true),
		hears(loop, 6204, NULL, true), hears(all, 6204, NULL, true),
	};
	for (int i = 0; i < 3; i++)
		enter(fds[i], group);
	int from = must(socket(family, SOCK_DGRAM, 0)), local = must(socket(family, SOCK_DGRAM, 0));
	union name source = at(own, 6210), link = at(four ? own : "fe80::77", 6211);
	must(bind(from, &source.any, size));
	must(bind(local, &link.any, size));
	set(from, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_TTL : IPV6_UNICAST_HOPS, 9);
	set(from, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_TOS : IPV6_TCLASS, 0x28);
	set(from, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_MULTICAST_TTL : IPV6_MULTICAST_HOPS, 3);
	if (four)
		set(from, SOL_SOCKET, SO_BROADCAST, 1), set(local, SOL_SOCKET, SO_BROADCAST, 1);
	struct ip_mreqn by = {.imr_ifindex = index_of("w0")};
	must(four ? setsockopt(from, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by) : setsockopt(from, IPPROTO_IPV6, IPV6_MULTICAST_IF, &by.imr_ifindex, sizeof(int)));

	send_to(from, own, 6200, "to one");
	send_to(from, group, 6200, "to the group");
	send_to(local, near, 6200, "to those near");
	send_to(local, own, 6200, "to another");
	send_to(from, group, 6201, "to both");
	send_to(from, group, 6201, "to both again");
	send_to(from, own, 6202, "by the device");
	send_to(from, near, 6203, "to all near");
	send_to(from, own, 6204, "to any address");
	send_to(from, own, 6204, "to any address again");

	int waiting[SOCKETS] = {0}, expected[SOCKETS] = {4, 2, 2, 1, 1, 0, 2};
	for (int i = 0; i < SOCKETS; i++) {
		set(fds[i], SOL_SOCKET, SO_PEEK_OFF, 0);
		while (waiting[i] < MOST && receive(fds[i], MSG_PEEK, was[i][waiting[i]]))
			waiting[i]++;
		set(fds[i], SOL_SOCKET, SO_PEEK_OFF, -1);
		same("what waits", expected[i], waiting[i]);
	}

	freeze_here();
	spoil(must(recv(fds[1], (char[8]){0}, 8, 0)););

	for (int i = 0; i < SOCKETS; i++) {
		int found = 0;
		while (found < MOST && receive(fds[i], 0, is[found]))
			found++;
		same("what waits", waiting[i], found);
		for (int which = 0; which < found && found == waiting[i]; which++)
			expect(!strcmp(was[i][which], is[which]), "socket %d: was %s, is %s", i, was[i][which], is[which]);
	}
	send_to(from, group, 6201, "news");
	for (int i = 1; i < 3; i++)
		same("news to the group", true, receive(fds[i], 0, is[0]) && !strncmp(is[0], "news", 4));
	return report();
}

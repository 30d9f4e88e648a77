/* UDP, UDP-Lite, raw and ICMP sockets, of both families: names, peers, options, filters, groups, and what waits with its senders. */
// arguments: 4 | 6
// sysctl: net.ipv4.ping_group_range=0 1000
#include "loopback.h"
#include <linux/filter.h>
#include <net/if.h>

/* linux/icmp.h can't be included together with net/if.h. */
enum { ICMP_FILTER_OPTION = 1, NO_ECHO_REPLIES = 1 };
/* linux/udp.h can't, either. */
enum { UDPLITE = 136, SEND_CSCOV = 10, SEGMENT = 103, GRO = 104, CORK = 1 };

static int bound(int kind, int protocol, int port) {
	union address name = at(port);
	int fd = must(socket(four ? AF_INET : AF_INET6, kind, protocol));
	must(bind(fd, &name.any, size));
	return fd;
}

static void send_to(int from, int port, const char *text) {
	union address name = at(port);
	same("sending", strlen(text), sendto(from, text, strlen(text), 0, &name.any, size));
}

static void receive(int fd, const char *text, int from) {
	char found[64] = {0};
	union address name = {0}, wanted = at(from);
	socklen_t length = sizeof name;
	struct timeval limit = {.tv_sec = 10};
	must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	ssize_t got = recvfrom(fd, found, sizeof found - 1, 0, &name.any, &length);
	if (got != (ssize_t)strlen(text) || strcmp(found, text))
		differs("received \"%s\" (%zd) instead of \"%s\"", found, got, text);
	same("the sender's port", from, ntohs(name.four.sin_port));
	same("the sender's address", 0, memcmp(&name, &wanted, size));
}

static int get(int fd, int level, int name) {
	int value = -1;
	socklen_t length = sizeof value;
	must(getsockopt(fd, level, name, &value, &length));
	return value;
}

static void set(int fd, int level, int name, int value) {
	must(setsockopt(fd, level, name, &value, sizeof value));
}

static struct group_req group(int last) {
	struct group_req request = {.gr_interface = if_nametoindex("lo")};
	if (four)
		*(struct sockaddr_in *)&request.gr_group = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xEF010200 | last)};
	else
		*(struct sockaddr_in6 *)&request.gr_group = (struct sockaddr_in6){.sin6_family = AF_INET6,
			.sin6_addr.s6_addr = {0xFF, 0x02, [15] = last}};
	return request;
}

int main(int count, char **arguments) {
	four = count > 1 && arguments[1][0] == '4';
	size = four ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	int level = four ? IPPROTO_IP : IPPROTO_IPV6;

	int server = bound(SOCK_DGRAM, 0, 6000), client = bound(SOCK_DGRAM | SOCK_NONBLOCK, 0, 6001), other = bound(SOCK_DGRAM, 0, 6002);
	union address name = at(6000);
	must(connect(client, &name.any, size));
	set(client, level, four ? IP_TTL : IPV6_UNICAST_HOPS, 33);
	set(client, level, four ? IP_TOS : IPV6_TCLASS, 0x20);
	set(client, SOL_SOCKET, SO_BROADCAST, 1);
	set(client, level, four ? IP_MULTICAST_TTL : IPV6_MULTICAST_HOPS, 5);
	must(send(client, "first", 5, 0));
	send_to(other, 6000, "second");
	send_to(other, 6000, "");
	must(send(client, "third", 5, 0));

	int shared[2];
	for (int i = 0; i < 2; i++) {
		shared[i] = must(socket(name.any.sa_family, SOCK_DGRAM, 0));
		set(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
		name = at(6003);
		must(bind(shared[i], &name.any, size));
	}
	int fresh = must(socket(name.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	/* Nothing passes but what begins with an 'a', behind the header of UDP. */
	struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 8), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'a', 0, 1), BPF_STMT(BPF_RET | BPF_K, -1),
		BPF_STMT(BPF_RET | BPF_K, 0)};
	int filtered = bound(SOCK_DGRAM, 0, 6004);
	must(setsockopt(filtered, SOL_SOCKET, SO_ATTACH_FILTER, &(struct sock_fprog){4, code}, sizeof(struct sock_fprog)));
	send_to(other, 6004, "a, queued");

	int member = must(socket(name.any.sa_family, SOCK_DGRAM, 0));
	struct group_req joined = group(7), never = group(8);
	must(setsockopt(member, level, MCAST_JOIN_GROUP, &joined, sizeof joined));

	/* UDP-Lite, which newer kernels lack, and several packets that wait as one (UDP_GRO). */
	int lite = socket(name.any.sa_family, SOCK_DGRAM, UDPLITE), gathering = bound(SOCK_DGRAM, 0, 6006);
	if (lite >= 0) {
		name = at(6007);
		must(bind(lite, &name.any, size));
		set(lite, UDPLITE, SEND_CSCOV, 8);
		must(sendto(lite, "lightly", 7, 0, &name.any, size));
	}
	set(gathering, IPPROTO_UDP, GRO, 1);
	set(other, IPPROTO_UDP, SEGMENT, 4);
	send_to(other, 6006, "one,two,thr");
	set(other, IPPROTO_UDP, SEGMENT, 0);

	/* The kernel answers a ping; the answer waits. */
	int ping = must(socket(name.any.sa_family, SOCK_DGRAM, four ? IPPROTO_ICMP : IPPROTO_ICMPV6));
	unsigned char request[16] = {four ? 8 : 128, [7] = 9, [8] = 'p', 'i', 'n', 'g'}, answer[32] = {0};
	name = at(0);
	must(sendto(ping, request, sizeof request, 0, &name.any, size));

	/* Half of a datagram is held back: by an option, connected and not, and by a flag. */
	int corked[3];
	for (int i = 0; i < 3; i++) {
		corked[i] = bound(SOCK_DGRAM, 0, 6020 + i);
		name = at(6000);
		if (i == 1)
			must(connect(corked[i], &name.any, size));
		if (i < 2)
			set(corked[i], IPPROTO_UDP, CORK, 1);
		must(sendto(corked[i], "half", 4, i < 2 ? 0 : MSG_MORE, i == 1 ? NULL : &name.any, i == 1 ? 0 : size));
	}

	/* One that sends no more, one that hears no more, one for neither. */
	int shut[3];
	for (int i = 0; i < 3; i++) {
		shut[i] = bound(SOCK_DGRAM, 0, 6010 + i);
		name = at(6002);
		must(connect(shut[i], &name.any, size));
		must(setsockopt(shut[i], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_usec = 200000}, sizeof(struct timeval)));
		must(shutdown(shut[i], (int[]){SHUT_WR, SHUT_RD, SHUT_RDWR}[i]));
	}

	int raw = must(socket(name.any.sa_family, SOCK_RAW, four ? IPPROTO_ICMP : IPPROTO_ICMPV6));
	if (four)
		must(setsockopt(raw, SOL_RAW, ICMP_FILTER_OPTION, &(int){NO_ECHO_REPLIES}, sizeof(int)));

	freeze_here();
	spoil(set(client, level, four ? IP_TTL : IPV6_UNICAST_HOPS, 34););

	union address at_server = at(6000);
	receive(server, "first", 6001);
	receive(server, "second", 6002);
	receive(server, "", 6002);
	receive(server, "third", 6001);
	must(send(client, "fourth", 6, 0));
	receive(server, "fourth", 6001);
	same("what is held back waits", -1, recv(server, (char[8]){0}, 8, MSG_DONTWAIT));
	for (int i = 0; i < 3; i++) {
		if (i < 2)
			same("UDP_CORK", 1, get(corked[i], IPPROTO_UDP, CORK));
		must(i == 1 ? send(corked[i], ", whole", 7, 0) : sendto(corked[i], ", whole", 7, 0, &at_server.any, size));
		if (i < 2)
			set(corked[i], IPPROTO_UDP, CORK, 0);
		receive(server, "half, whole", 6020 + i);
	}
	send_to(server, 6001, "back");
	receive(client, "back", 6000);
	send_to(other, 6001, "not the peer");
	same("hearing another than the peer", -1, recv(client, (char[8]){0}, 8, MSG_DONTWAIT));
	same("TTL", 33, get(client, level, four ? IP_TTL : IPV6_UNICAST_HOPS));
	same("TOS", 0x20, get(client, level, four ? IP_TOS : IPV6_TCLASS));
	same("SO_BROADCAST", 1, get(client, SOL_SOCKET, SO_BROADCAST));
	same("multicast TTL", 5, get(client, level, four ? IP_MULTICAST_TTL : IPV6_MULTICAST_HOPS));
	same("flags", O_RDWR | O_NONBLOCK, fcntl(client, F_GETFL));
	same("SO_REUSEPORT", 1, get(shared[1], SOL_SOCKET, SO_REUSEPORT));
	send_to(other, 6003, "to either");
	fd_set either;
	FD_ZERO(&either);
	FD_SET(shared[0], &either);
	FD_SET(shared[1], &either);
	same("one of two hears", 1, select(shared[1] + 1, &either, NULL, NULL, &(struct timeval){.tv_sec = 10}));
	same("close-on-exec", FD_CLOEXEC, fcntl(fresh, F_GETFD));
	name = at(6005);
	same("binding the fresh one", 0, bind(fresh, &name.any, size));

	same("sending by one that is shut for that", -1, send(shut[0], "x", 1, MSG_NOSIGNAL));
	same("sending by the other", 1, send(shut[1], "x", 1, MSG_NOSIGNAL));
	same("reading there", 0, recv(shut[1], (char[8]){0}, 8, 0));
	same("reading by the first", -1, recv(shut[0], (char[8]){0}, 8, 0));
	same("sending by the third", -1, send(shut[2], "x", 1, MSG_NOSIGNAL));
	same("reading by the third", 0, recv(shut[2], (char[8]){0}, 8, 0));
	receive(filtered, "a, queued", 6002);
	send_to(other, 6004, "b, dropped");
	send_to(other, 6004, "a, taken");
	receive(filtered, "a, taken", 6002);

	if (lite >= 0) {
		receive(lite, "lightly", 6007);
		same("UDPLITE_SEND_CSCOV", 8, get(lite, UDPLITE, SEND_CSCOV));
	}
	char found[32] = {0};
	size_t gathered = 0;
	for (ssize_t got; gathered < 11 && (got = recv(gathering, found + gathered, sizeof found - gathered, MSG_DONTWAIT)) > 0;)
		gathered += got;
	same("what was gathered", 0, strcmp(found, "one,two,thr"));
	same("the answer to a ping", 16, recv(ping, answer, sizeof answer, MSG_DONTWAIT));
	same("its sequence number", 9, answer[7]);
	same("its text", 0, memcmp(answer + 8, "ping", 4));

	same("leaving a group that was never joined", -1, setsockopt(member, level, MCAST_LEAVE_GROUP, &never, sizeof never));
	same("leaving the group", 0, setsockopt(member, level, MCAST_LEAVE_GROUP, &joined, sizeof joined));

	if (four)
		same("the ICMP filter", NO_ECHO_REPLIES, get(raw, SOL_RAW, ICMP_FILTER_OPTION));
	same("the raw socket's type", SOCK_RAW, get(raw, SOL_SOCKET, SO_TYPE));
	same("the raw socket's protocol", four ? IPPROTO_ICMP : IPPROTO_ICMPV6, get(raw, SOL_SOCKET, SO_PROTOCOL));
	return report();
}

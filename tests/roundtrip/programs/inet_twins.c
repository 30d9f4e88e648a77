/* Sockets that share an address by an option that they no longer have (SO_REUSEADDR, SO_REUSEPORT), each with what waits at it alone. */
// arguments: 4 | 6
#include "wait.h"
#include <arpa/inet.h>
#include <sys/ioctl.h>

enum { UDPLITE = 136, TWINS = 7 };
union address { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; };
static bool four;
static socklen_t size;

static union address at(int port, bool everywhere) {
	union address made = {0};
	if (four)
		made.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(everywhere ? INADDR_ANY : INADDR_LOOPBACK)};
	else
		made.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port),
			.sin6_addr = everywhere ? (struct in6_addr)IN6ADDR_ANY_INIT : (struct in6_addr)IN6ADDR_LOOPBACK_INIT};
	return made;
}

static void set(int fd, int name, int value) {
	must(setsockopt(fd, SOL_SOCKET, name, &value, sizeof value));
}

static int get(int fd, int name) {
	int value = -1;
	must(getsockopt(fd, SOL_SOCKET, name, &value, &(socklen_t){sizeof value}));
	return value;
}

static int shared(int type, int protocol, int port, int option, bool everywhere) {
	union address name = at(port, everywhere);
	int fd = must(socket(four ? AF_INET : AF_INET6, type, protocol));
	set(fd, option, 1);
	must(bind(fd, &name.any, size));
	return fd;
}

static void send_to(int from, int port, const char *text) {
	union address name = at(port, false);
	same("sending", strlen(text), sendto(from, text, strlen(text), 0, &name.any, size));
}

static void receive(const char *who, int fd, const char *text) {
	char found[64] = {0};
	ssize_t got = recv(fd, found, sizeof found - 1, MSG_DONTWAIT);
	expect(got == (ssize_t)strlen(text) && !strcmp(found, text), "%s: received \"%s\" (%zd) instead of \"%s\"", who, found, got, text);
}

int main(int count, char **arguments) {
	four = count > 1 && arguments[1][0] == '4';
	size = four ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);

	/* Who has dropped the option: neither, the first, the second, both; and at UDP-Lite, at all addresses, by SO_REUSEPORT. */
	int twins[TWINS][2], sender = must(socket(four ? AF_INET : AF_INET6, SOCK_DGRAM, 0)), options[TWINS];
	bool is_there[TWINS];
	for (int i = 0; i < TWINS; i++) {
		int protocol = i == 4 ? UDPLITE : IPPROTO_UDP, port = 6100 + i, from = sender;
		options[i] = i == 6 ? SO_REUSEPORT : SO_REUSEADDR;
		if (i == 4)
			from = socket(four ? AF_INET : AF_INET6, SOCK_DGRAM, protocol);
		is_there[i] = from >= 0; /* newer kernels lack UDP-Lite */
		for (int which = 0; is_there[i] && which < 2; which++) {
			twins[i][which] = shared(SOCK_DGRAM, protocol, port, options[i], i == 5);
			if (i == 6)
				continue;
			send_to(from, port, which ? "to the second" : "to the first");
			send_to(from, port, "and more");
		}
		if (is_there[i] && i != 6)
			for (int which = 0; which < 2; which++)
				set(twins[i][which], options[i], !(i >= 3 || i == which + 1));
	}
	/* The kernel draws which of a group gets whose packets. */
	int waiting[2] = {0};
	for (int tries = 0; (!waiting[0] || !waiting[1]) && tries < 64; tries++) {
		int from = must(socket(four ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
		send_to(from, 6106, "one");
		must(close(from));
		for (int which = 0; which < 2; which++)
			must(ioctl(twins[6][which], FIONREAD, &waiting[which]));
	}
	expect(waiting[0] && waiting[1], "one of a group gets all");
	int counts[2] = {0};
	for (int which = 0; which < 2; which++) {
		set(twins[6][which], SO_PEEK_OFF, 0);
		while (recv(twins[6][which], (char[8]){0}, 8, MSG_PEEK | MSG_DONTWAIT) > 0)
			counts[which]++;
		set(twins[6][which], SO_PEEK_OFF, -1);
	}

	/* Bound only, and one of two listening. */
	int streams[2][2];
	for (int i = 0; i < 2; i++) {
		for (int which = 0; which < 2; which++)
			streams[i][which] = shared(SOCK_STREAM, 0, 6110 + i, SO_REUSEADDR, false);
		if (i)
			must(listen(streams[i][0], 5));
		set(streams[i][0], SO_REUSEADDR, 0);
		set(streams[i][1], SO_REUSEADDR, 0);
	}

	freeze_here();
	spoil(set(twins[1][0], SO_REUSEADDR, 1););

	for (int i = 0; i < TWINS; i++) {
		char name[32];
		for (int which = 0; is_there[i] && which < 2; which++) {
			snprintf(name, sizeof name, "pair %d, %s", i, which ? "second" : "first");
			same(name, i == 6 || !(i >= 3 || i == which + 1), get(twins[i][which], options[i]));
			if (i == 6) {
				for (int left = counts[which]; left > 0; left--)
					receive(name, twins[i][which], "one");
			} else {
				receive(name, twins[i][which], which ? "to the second" : "to the first");
				receive(name, twins[i][which], "and more");
			}
			same(name, -1, recv(twins[i][which], (char[8]){0}, 8, MSG_DONTWAIT));
		}
	}
	for (int i = 0; i < TWINS; i++) {
		if (!is_there[i] || i == 4 || i == 6)
			continue;
		send_to(sender, 6100 + i, "news");
		receive("who came last", twins[i][1], "news");
	}
	int own = must(socket(four ? AF_INET : AF_INET6, SOCK_STREAM, 0));
	for (int i = 0; i < 2; i++) {
		for (int which = 0; which < 2; which++) {
			union address name = {0};
			must(getsockname(streams[i][which], &name.any, &(socklen_t){sizeof name}));
			same("a TCP socket's port", 6110 + i, ntohs(name.four.sin_port));
			same("its SO_REUSEADDR", 0, get(streams[i][which], SO_REUSEADDR));
		}
	}
	union address name = at(6111, false);
	same("connecting", 0, connect(own, &name.any, size));
	return report();
}

/* TCP connections within the container that nobody has accepted yet: with and without data, half closed, and closed by the client. */
// arguments: 4 | 6 | mapped | deferred
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>

enum { CLIENTS = 5, LARGE = 300000 };
static union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } address;
static socklen_t size;
static char pattern[LARGE];

static int client(int family) {
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = address.four.sin_port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = must(socket(family, SOCK_STREAM, 0));
	must(family == AF_INET ? connect(fd, (void *)&four, sizeof four) : connect(fd, &address.any, size));
	return fd;
}

static unsigned port_of(int fd, bool peer) {
	union { struct sockaddr any; struct sockaddr_in6 six; } name;
	socklen_t length = sizeof name;
	must(peer ? getpeername(fd, &name.any, &length) : getsockname(fd, &name.any, &length));
	return ntohs(name.six.sin6_port);
}

static void read_all(const char *what, int fd, const char *wanted, size_t length, bool ends) {
	static char found[LARGE];
	size_t have = 0;
	struct timeval limit = {.tv_sec = 10};
	must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	for (ssize_t got; have < length && (got = recv(fd, found + have, length - have, 0)) > 0;)
		have += got;
	same(what, length, have);
	same("their order", 0, memcmp(found, wanted, have));
	if (ends)
		same("then the end", 0, recv(fd, found, 1, 0));
	else
		same("no more", -1, recv(fd, found, 1, MSG_DONTWAIT));
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "4";
	int family = !strcmp(what, "6") ? AF_INET6 : AF_INET;
	bool six = family == AF_INET6 || !strcmp(what, "mapped"), deferred = !strcmp(what, "deferred");
	if (six) {
		address.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
		if (family == AF_INET)
			address.six.sin6_addr = in6addr_any;
		size = sizeof address.six;
	} else {
		address.four = (struct sockaddr_in){.sin_family = AF_INET};
		size = sizeof address.four;
	}
	address.four.sin_port = htons(7072); /* the same place in both */
	for (int i = 0; i < LARGE; i++)
		pattern[i] = i * 7 + i / 251;
	int listener = must(socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0)), empty = must(socket(AF_INET, SOCK_STREAM, 0));
	if (deferred)
		must(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){30}, sizeof(int)));
	must(bind(listener, &address.any, size));
	must(listen(listener, 16));
	/* At another listener, one that has sent nothing: it can be kept without a look into it. */
	struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = htons(7073), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	must(bind(empty, (void *)&other, sizeof other));
	must(listen(empty, 16));
	int alone = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(alone, (void *)&other, sizeof other));

	int clients[CLIENTS];
	unsigned ports[CLIENTS];
	for (int i = 0; i < CLIENTS; i++) {
		clients[i] = client(family);
		ports[i] = port_of(clients[i], false);
	}
	must(setsockopt(clients[1], SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int)));
	must(send(clients[1], "hello", 5, 0));
	must(send(clients[2], "good bye", 8, 0));
	must(shutdown(clients[2], SHUT_WR));
	must(send(clients[3], "gone", 4, 0));
	close(clients[3]);
	must(fcntl(clients[4], F_SETFL, O_NONBLOCK));
	ssize_t large = 0;
	for (ssize_t sent; large < LARGE && (sent = send(clients[4], pattern + large, LARGE - large, 0)) > 0;)
		large += sent;
	usleep(100000);

	freeze_here();
	spoil(close(must(accept(listener, NULL, NULL))); close(clients[deferred]); clients[deferred] = client(family););

	int servers[CLIENTS] = {0};
	for (int i = 0; i < CLIENTS; i++) {
		if (i == 0 && deferred) {
			must(send(clients[0], "now", 3, 0));
			continue;
		}
		if (poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 10000) != 1) {
			differs("number %d doesn't come", i);
			return report();
		}
		servers[i] = must(accept(listener, NULL, NULL));
		if (i != 3)
			same("the client's port", ports[i], port_of(servers[i], true));
	}
	if (deferred) {
		if (poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 10000) != 1) {
			differs("the one that is deferred doesn't come");
			return report();
		}
		servers[0] = must(accept(listener, NULL, NULL));
	}
	same("nobody else", 0, poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 100));
	read_all("what the first sent", servers[0], "now", deferred ? 3 : 0, false);
	read_all("what the second sent", servers[1], "hello", 5, false);
	read_all("what the third sent", servers[2], "good bye", 8, true);
	read_all("what the fourth sent", servers[3], "gone", 4, true);
	read_all("what the fifth sent", servers[4], pattern, large, false);
	same("its flags", O_RDWR | O_NONBLOCK, fcntl(clients[4], F_GETFL));
	int value = 0;
	socklen_t length = sizeof value;
	must(getsockopt(clients[1], SOL_SOCKET, SO_KEEPALIVE, &value, &length));
	same("SO_KEEPALIVE", 1, value);
	for (int i = 0; i < 3; i++) {
		must(send(servers[i], "answer", 6, MSG_NOSIGNAL));
		read_all("the answer", clients[i], "answer", 6, false);
	}
	int server = must(accept(empty, NULL, NULL));
	must(send(alone, "late", 4, 0));
	read_all("the quiet one", server, "late", 4, false);
	return report();
}

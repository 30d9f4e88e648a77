/* Sockets of MPTCP, as Go's listeners are: listening, with clients of TCP that are accepted, bound, and new. */
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>

static int option(int fd, int level, int name) {
	int value = -1;
	must(getsockopt(fd, level, name, &value, &(socklen_t){sizeof value}));
	return value;
}

static int client(int family, int port) {
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = must(socket(family, SOCK_STREAM, 0));
	must(family == AF_INET ? connect(fd, (void *)&four, sizeof four) : connect(fd, (void *)&six, sizeof six));
	return fd;
}

int main(void) {
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(7075)}, other = {.sin6_family = AF_INET6, .sin6_port = htons(7076)};
	/* A kernel without it has but TCP. */
	int protocol = access("/proc/sys/net/mptcp/enabled", F_OK) == 0 ? IPPROTO_MPTCP : IPPROTO_TCP;
	int listener = must(socket(AF_INET6, SOCK_STREAM, protocol)), fresh = must(socket(AF_INET, SOCK_STREAM, protocol));
	int bound = must(socket(AF_INET6, SOCK_STREAM, protocol));
	must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
	must(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int)));
	must(setsockopt(fresh, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
	must(setsockopt(fresh, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int)));
	must(setsockopt(fresh, SOL_SOCKET, SO_SNDBUF, &(int){30000}, sizeof(int)));
	must(bind(listener, (void *)&any, sizeof any));
	must(listen(listener, 77));
	must(bind(bound, (void *)&other, sizeof other));
	int four = client(AF_INET, 7075), four_server = must(accept(listener, NULL, NULL));
	int six = client(AF_INET6, 7075), six_server = must(accept(listener, NULL, NULL));
	must(send(four, "four", 4, 0) + send(six, "six", 3, 0));

	freeze_here();
	spoil(close(listener); listener = must(socket(AF_INET6, SOCK_STREAM, 0)); must(bind(listener, (void *)&any, sizeof any)); must(listen(listener, 7)););

	char text[8];
	same("what the client of IPv4 sent", 4, recv(four_server, text, 8, 0));
	same("what the client of IPv6 sent", 3, recv(six_server, text, 8, 0));
	same("the listener's protocol", protocol, option(listener, SOL_SOCKET, SO_PROTOCOL));
	same("the new one's protocol", protocol, option(fresh, SOL_SOCKET, SO_PROTOCOL));
	same("SO_REUSEADDR", 1, option(listener, SOL_SOCKET, SO_REUSEADDR));
	same("TCP_NODELAY", 1, option(fresh, IPPROTO_TCP, TCP_NODELAY));
	same("SO_SNDBUF", 60000, option(fresh, SOL_SOCKET, SO_SNDBUF));
	same("SO_KEEPALIVE", 1, option(fresh, SOL_SOCKET, SO_KEEPALIVE));
	int more[] = {client(AF_INET, 7075), client(AF_INET6, 7075)};
	for (int i = 0; i < 2; i++) {
		struct pollfd came = {.fd = listener, .events = POLLIN};
		same("who has come", 1, poll(&came, 1, 60000));
		must(accept(listener, NULL, NULL));
		must(send(more[i], "x", 1, 0));
	}
	must(listen(bound, 3));
	client(AF_INET6, 7076);
	must(accept(bound, NULL, NULL));
	return report();
}

/* Listening TCP sockets, of IPv4 and IPv6, one of whose port others are bound to, and sockets that are only bound, only made, or shut; clients
 * connect afterwards. */
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>

int main(void) {
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(8080), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(8081), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr *addresses[] = {(void *)&four, (void *)&six};
	const socklen_t sizes[] = {sizeof four, sizeof six};
	const int families[] = {AF_INET, AF_INET6};
	int listeners[2], value;
	socklen_t size = sizeof value;
	char found[32];
	for (int i = 0; i < 2; i++) {
		listeners[i] = must(socket(families[i], SOCK_STREAM | SOCK_CLOEXEC, 0));
		must(setsockopt(listeners[i], SOL_SOCKET, i ? SO_REUSEPORT : SO_REUSEADDR, &(int){1}, sizeof(int)));
		must(setsockopt(listeners[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
		must(setsockopt(listeners[i], SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int)));
		if (i)
			must(setsockopt(listeners[i], IPPROTO_IPV6, IPV6_V6ONLY, &(int){1}, sizeof(int)));
		must(bind(listeners[i], addresses[i], sizes[i]));
		must(listen(listeners[i], 7));
	}
	int bound = must(socket(AF_INET, SOCK_STREAM, 0)), fresh = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	four.sin_port = htons(8082);
	must(bind(bound, addresses[0], sizes[0]));
	int twins[3];
	four.sin_port = htons(8083);
	for (int i = 0; i < 3; i++) {
		twins[i] = must(socket(AF_INET, SOCK_STREAM, 0));
		must(setsockopt(twins[i], SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
		must(bind(twins[i], addresses[0], sizes[0]));
	}
	must(listen(twins[0], 7));
	must(setsockopt(twins[1], SOL_SOCKET, SO_REUSEADDR, &(int){0}, sizeof(int)));
	int shut = must(socket(AF_INET, SOCK_STREAM, 0));
	same("shutting one without a peer", -1, shutdown(shut, SHUT_RDWR));
	four.sin_port = htons(8080);

	freeze_here();
	spoil(close(listeners[0]);  listeners[0] = dup(bound););

	for (int i = 0; i < 2; i++) {
		must(getsockopt(listeners[i], SOL_SOCKET, i ? SO_REUSEPORT : SO_REUSEADDR, &value, &size));
		same("SO_REUSE…", 1, value);
		must(getsockopt(listeners[i], IPPROTO_TCP, TCP_NODELAY, &value, &size));
		same("TCP_NODELAY", 1, value);
		must(getsockopt(listeners[i], SOL_SOCKET, SO_KEEPALIVE, &value, &size));
		same("SO_KEEPALIVE", 1, value);
		int client = must(socket(families[i], SOCK_STREAM, 0));
		if (connect(client, addresses[i], sizes[i]) != 0) {
			differs("connecting to %d: %s", i, strerror(errno));
			continue;
		}
		int server = must(accept(listeners[i], NULL, NULL));
		must(send(client, "hello", 5, 0));
		same("hello", 5, recv(server, found, 32, 0));
	}
	must(getsockopt(listeners[1], IPPROTO_IPV6, IPV6_V6ONLY, &value, &size));
	same("IPV6_V6ONLY", 1, value);
	same("close-on-exec", FD_CLOEXEC, fcntl(listeners[1], F_GETFD));
	struct sockaddr_in name = {0};
	for (int i = 0; i < 3; i++) {
		size = sizeof name;
		must(getsockname(twins[i], (void *)&name, &size));
		same("the port of one of several", 8083, ntohs(name.sin_port));
		size = sizeof value;
		must(getsockopt(twins[i], SOL_SOCKET, SO_REUSEADDR, &value, &size));
		same("its SO_REUSEADDR", i != 1, value);
		must(getsockopt(twins[i], SOL_SOCKET, SO_ACCEPTCONN, &value, &size));
		same("whether it listens", i == 0, value);
	}
	same("reading from the one that is shut", 0, recv(shut, found, 32, 0));
	size = sizeof name;
	must(getsockname(bound, (void *)&name, &size));
	same("the port of the one that is bound", 8082, ntohs(name.sin_port));
	same("listening on it", 0, listen(bound, 1));
	same("flags", O_RDWR | O_NONBLOCK, fcntl(fresh, F_GETFL));
	same("connecting the fresh one", 1, connect(fresh, (void *)&name, size) == 0 || errno == EINPROGRESS);
	return report();
}

/* Connections inside the container, of both families, in the states between connect and close, with data on its way. */
// arguments: 4 | 6 | mapped
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>

static const char *family;
static union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } address;
static socklen_t size;
static int listener;

struct ends { int client, server; };

static struct ends connected(void) {
	int mapped = !strcmp(family, "mapped");
	struct ends ends = {.client = must(socket(address.any.sa_family, SOCK_STREAM, 0))};
	struct sockaddr_in plain = {.sin_family = AF_INET, .sin_port = htons(7070), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (mapped) {
		close(ends.client);
		ends.client = must(socket(AF_INET, SOCK_STREAM, 0));
		must(connect(ends.client, (void *)&plain, sizeof plain));
	} else {
		must(connect(ends.client, &address.any, size));
	}
	ends.server = must(accept(listener, NULL, NULL));
	return ends;
}

static int state(int fd) {
	struct tcp_info info = {0};
	socklen_t length = sizeof info;
	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
	return info.tcpi_state;
}

static void await_state(int fd, int wanted) {
	for (int i = 0; i < 500 && state(fd) != wanted; i++)
		usleep(10000);
	same("the state before", wanted, state(fd));
}

static void read_all(const char *what, int fd, const char *wanted) {
	char found[64] = {0};
	size_t length = strlen(wanted), have = 0;
	while (have < length) {
		ssize_t got = recv(fd, found + have, length - have, 0);
		if (got <= 0)
			break;
		have += got;
	}
	if (strcmp(found, wanted))
		differs("%s: \"%s\" instead of \"%s\"", what, found, wanted);
}

static int ended(int fd) {
	char byte;
	return recv(fd, &byte, 1, 0) == 0;
}

int main(int count, char **arguments) {
	family = arguments[count - 1];
	if (!strcmp(family, "4")) {
		address.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		size = sizeof address.four;
	} else {
		address.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
		if (!strcmp(family, "mapped"))
			address.six.sin6_addr = in6addr_any;
		size = sizeof address.six;
	}
	address.four.sin_port = htons(7070); /* the same place in both */
	listener = must(socket(address.any.sa_family, SOCK_STREAM, 0));
	must(bind(listener, &address.any, size));
	must(listen(listener, 16));

	struct ends quiet = connected(), queued = connected(), full = connected(), half = connected(), closed = connected(), last = connected(),
		orphan = connected();
	must(send(queued.client, "to the server", 13, 0));
	must(send(queued.server, "to the client", 13, 0));
	must(setsockopt(queued.server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
	must(setsockopt(queued.server, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));

	/* More than both sides buffer: some of it has never been sent. */
	static char pattern[1 << 16];
	for (size_t i = 0; i < sizeof pattern; i++)
		pattern[i] = i * 7 + i / 251;
	size_t sent = 0;
	must(fcntl(full.client, F_SETFL, O_NONBLOCK));
	for (int idle = 0; idle < 20;) {
		size_t at = sent % sizeof pattern;
		ssize_t took = send(full.client, pattern + at, sizeof pattern - at, 0);
		if (took > 0) {
			sent += took;
			idle = 0;
		} else {
			idle++;
			usleep(5000);
		}
	}

	must(send(half.client, "the last word", 13, 0));
	must(shutdown(half.client, SHUT_WR)); /* the client in FIN_WAIT2, the server in CLOSE_WAIT */
	await_state(half.client, TCP_FIN_WAIT2);
	must(shutdown(closed.client, SHUT_WR));
	must(shutdown(closed.server, SHUT_WR)); /* over, and both still hold it */
	await_state(closed.server, TCP_CLOSE);
	must(shutdown(last.server, SHUT_RD));
	must(send(orphan.server, "before the end", 14, 0));
	must(close(orphan.server));
	await_state(orphan.client, TCP_CLOSE_WAIT);

	int sizes[4], size_now;
	socklen_t length = sizeof(int);
	for (int i = 0; i < 4; i++)
		must(getsockopt(i & 1 ? quiet.client : queued.server, SOL_SOCKET, i & 2 ? SO_RCVBUF : SO_SNDBUF, &sizes[i], &length));

	freeze_here();
	spoil(read_all("", queued.server, "to the server"); must(send(queued.client, "to the Server", 13, 0)););

	for (int i = 0; i < 4; i++) {
		must(getsockopt(i & 1 ? quiet.client : queued.server, SOL_SOCKET, i & 2 ? SO_RCVBUF : SO_SNDBUF, &size_now, &length));
		same("a buffer's size", sizes[i], size_now);
	}
	same("the quiet one's state", TCP_ESTABLISHED, state(quiet.client));
	must(send(quiet.client, "hello", 5, 0));
	read_all("the quiet one", quiet.server, "hello");
	must(send(quiet.server, "hello, too", 10, 0));
	read_all("the quiet one's answer", quiet.client, "hello, too");

	same("what waits is ready", 1, poll(&(struct pollfd){.fd = queued.server, .events = POLLIN}, 1, 60000));
	read_all("what was queued for the server", queued.server, "to the server");
	read_all("what was queued for the client", queued.client, "to the client");
	int value;
	must(getsockopt(queued.server, IPPROTO_TCP, TCP_NODELAY, &value, &length));
	same("TCP_NODELAY", 1, value);
	must(getsockopt(queued.server, SOL_SOCKET, SO_REUSEADDR, &value, &length));
	same("SO_REUSEADDR", 1, value);

	must(fcntl(full.client, F_SETFL, 0));
	must(shutdown(full.client, SHUT_WR));
	static char found[1 << 16];
	size_t received = 0;
	for (ssize_t got; (got = recv(full.server, found, sizeof found - received % sizeof found, 0)) > 0; received += got)
		if (memcmp(found, pattern + received % sizeof pattern, got)) {
			differs("the data differ after %zu bytes", received);
			break;
		}
	same("the bytes that arrive", (long)sent, (long)received);

	same("the half-closed client's state", TCP_FIN_WAIT2, state(half.client));
	same("the half-closed server's state", TCP_CLOSE_WAIT, state(half.server));
	read_all("what came before the FIN", half.server, "the last word");
	same("then the end", 1, ended(half.server));
	must(send(half.server, "heard", 5, 0));
	read_all("the other direction", half.client, "heard");
	must(close(half.server));
	same("its end", 1, ended(half.client));

	same("the end of what is over", 1, ended(closed.client) && ended(closed.server));
	same("reading where it was shut down", 1, ended(last.server));
	must(send(last.server, "one way", 7, 0));
	read_all("the way that is open", last.client, "one way");
	read_all("what an orphan had sent", orphan.client, "before the end");
	same("an orphan's end", 1, ended(orphan.client));

	struct ends anew = connected();
	must(send(anew.client, "new", 3, 0));
	read_all("a new connection", anew.server, "new");
	return report();
}

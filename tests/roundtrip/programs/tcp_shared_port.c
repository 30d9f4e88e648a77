/* TCP listeners that share a port, by SO_REUSEPORT or since one listens everywhere, and what waits at each: nobody has accepted it yet. */
// arguments: group | everywhere
#include "wait.h"
#include <arpa/inet.h>
#include <poll.h>

enum { CLIENTS = 24, PORT = 7074 };

static struct sockaddr_in at(in_addr_t host) {
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(host)};
}

static int listener(in_addr_t host) {
	struct sockaddr_in name = at(host);
	int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int)));
	must(bind(fd, (void *)&name, sizeof name));
	must(listen(fd, CLIENTS));
	return fd;
}

int main(int count, char **arguments) {
	bool everywhere = count > 1 && !strcmp(arguments[1], "everywhere");
	in_addr_t hosts[2] = {INADDR_LOOPBACK + everywhere, INADDR_LOOPBACK};
	int listeners[2] = {listener(everywhere ? INADDR_ANY : INADDR_LOOPBACK), listener(INADDR_LOOPBACK)};
	int clients[CLIENTS];
	for (int i = 0; i < CLIENTS; i++) {
		struct sockaddr_in name = at(hosts[i % 2]);
		clients[i] = must(socket(AF_INET, SOCK_STREAM, 0));
		must(connect(clients[i], (void *)&name, sizeof name));
		if (i % 4 != 3) /* some have sent nothing */
			must(send(clients[i], &(char){'a' + i}, 1, 0));
	}
	must(close(clients[0]));
	usleep(100000);

	freeze_here();
	spoil(close(must(accept(listeners[0], NULL, NULL)));)

	bool came[CLIENTS] = {false};
	int quiet = 0;
	for (int i = 0; i < CLIENTS; i++) {
		struct pollfd waiting[2] = {{listeners[0], POLLIN, 0}, {listeners[1], POLLIN, 0}};
		if (poll(waiting, 2, 10000) < 1) {
			differs("number %d doesn't come", i);
			return report();
		}
		int which = !waiting[0].revents;
		int fd = must(accept(listeners[which], NULL, NULL));
		char sent = 0;
		ssize_t got = recv(fd, &sent, 1, MSG_DONTWAIT);
		int from = sent - 'a';
		expect(got == 1 || errno == EAGAIN, "what came: %zd, %s", got, strerror(errno));
		quiet += got != 1;
		if (got == 1 && from >= 0 && from < CLIENTS) {
			expect(!came[from], "%d comes twice", from);
			came[from] = true;
			if (everywhere)
				same("where it waited", from % 2, which);
			if (from && write(fd, &sent, 1) != 1)
				differs("answering %d", from);
		}
	}
	same("those who have sent nothing", CLIENTS / 4, quiet);
	for (int i = 1; i < CLIENTS; i++) {
		char answer = 0;
		struct timeval limit = {.tv_sec = 10};
		must(setsockopt(clients[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
		if (i % 4 != 3 && (recv(clients[i], &answer, 1, 0) != 1 || answer != 'a' + i))
			differs("%d is not answered", i);
	}
	return report();
}

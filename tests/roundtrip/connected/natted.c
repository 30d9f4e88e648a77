/* Connections that are turned elsewhere (NAT): where each end sees the other is known to the kernel's tracking of connections alone. */
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <sys/socket.h>

enum { SEEN = 7080, REAL = 7081 };

static struct sockaddr_in at(const char *address, int port) {
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(address)};
}

static void hears(const char *what, int from, int to) {
	char text[8];
	struct timeval limit = {.tv_sec = 5};
	must(setsockopt(to, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	expect(send(from, "hello", 5, MSG_NOSIGNAL) == 5, "%s: send: %s", what, strerror(errno));
	expect(recv(to, text, 8, 0) == 5, "%s: recv: %s", what, strerror(errno));
}

int main(void) {
	struct sockaddr_in real = at("127.0.0.1", REAL), seen = at("127.0.0.1", SEEN), from = at("127.0.0.7", 7082), peer;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), client = must(socket(AF_INET, SOCK_STREAM, 0));
	must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
	must(bind(listener, (void *)&real, sizeof real) | listen(listener, 5));
	must(bind(client, (void *)&from, sizeof from));
	must(connect(client, (void *)&seen, sizeof seen));
	socklen_t size = sizeof peer;
	int server = must(accept(listener, (void *)&peer, &size));
	if (peer.sin_addr.s_addr != inet_addr("127.0.0.8"))
		differs("the client seems to be at %s", inet_ntoa(peer.sin_addr));
	int box = must(socket(AF_INET, SOCK_DGRAM, 0)), writer = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(box, (void *)&real, sizeof real));
	must(bind(writer, (void *)&from, sizeof from) | connect(writer, (void *)&seen, sizeof seen));
	must(send(writer, "letter", 6, 0));
	char text[8];
	size = sizeof peer;
	must(recvfrom(box, text, 8, 0, (void *)&peer, &size));
	must(sendto(box, "answer", 6, 0, (void *)&peer, size));
	must(recv(writer, text, 8, 0));
	must(connect(box, (void *)&peer, size));

	freeze_here();

	/* First those whose packets no rule would turn: they are answers. */
	hears("the server", server, client);
	hears("the client", client, server);
	hears("the box", box, writer);
	hears("the writer", writer, box);
	return report();
}

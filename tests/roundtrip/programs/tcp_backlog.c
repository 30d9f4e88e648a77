/* TCP connections within the container that nobody has accepted yet, and that have sent very much, with buffers for all of it. */
// capabilities: CAP_NET_ADMIN
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { CLIENTS = 2, SIZE = 20 << 20 };
static char sent[SIZE], got[SIZE + 1];

int main(void) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7074), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), client[CLIENTS];
	must(setsockopt(listener, SOL_SOCKET, SO_RCVBUFFORCE, &(int){16 << 20}, sizeof(int)));
	must(bind(listener, (void *)&address, sizeof address)), must(listen(listener, CLIENTS));
	for (int i = 0; i < CLIENTS; i++) {
		client[i] = must(socket(AF_INET, SOCK_STREAM, 0));
		must(setsockopt(client[i], SOL_SOCKET, SO_SNDBUFFORCE, &(int){2 * SIZE}, sizeof(int)));
		must(connect(client[i], (void *)&address, sizeof address));
		fill(sent, SIZE, i);
		same("what is sent at once", SIZE, must(send(client[i], sent, SIZE, MSG_DONTWAIT)));
	}

	freeze_here();
	spoil(must(send(client[0], "x", 1, 0)););

	for (int i = 0; i < CLIENTS; i++) {
		must(shutdown(client[i], SHUT_WR));
		int accepted = must(accept(listener, NULL, NULL));
		same("what comes", SIZE, recv(accepted, got, SIZE + 1, MSG_WAITALL));
		expect(is_filled(got, SIZE, i), "client %d has sent something else", i);
	}
	return report();
}

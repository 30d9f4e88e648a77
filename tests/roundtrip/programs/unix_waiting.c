/* Clients that wait for being accepted, in their order: with names, shut down, more than the backlog is by now. */
#include "unix_names.h"

enum { STREAM, PACKETS, CLIENT, ABSTRACT };
const char *const names[] = {"/work/server", "@server", "/work/client", "@client"};

int main(void) {
	int servers[2], clients[2][3];
	char found[8];
	for (int i = 0; i < 2; i++) {
		int type = i ? SOCK_SEQPACKET : SOCK_STREAM;
		must(listen(servers[i] = named(type, i), 5));
		clients[i][0] = named(type, CLIENT + i);
		clients[i][1] = must(socket(AF_UNIX, type, 0));
		clients[i][2] = must(socket(AF_UNIX, type | SOCK_NONBLOCK, 0));
		for (int j = 0; j < 3; j++)
			tie(clients[i][j], i);
		must(shutdown(clients[i][1], SHUT_WR));
		must(listen(servers[i], 1));
	}

	freeze_here();
	spoil(must(accept(servers[1], NULL, NULL)););

	for (int i = 0; i < 2; i++) {
		must(fcntl(servers[i], F_SETFL, O_NONBLOCK));
		for (int j = 0; j < 3; j++) {
			is_named("a client's peer", clients[i][j], i, true);
			int accepted = accept(servers[i], NULL, NULL);
			if (accepted < 0) {
				differs("client %d of %d has gone", j, i);
				continue;
			}
			is_named("who waited", accepted, j ? -1 : CLIENT + i, true);
			is_named("who accepted", accepted, i, false);
			if (j == 1)
				same("reading from one that was shut down", 0, recv(accepted, found, 8, MSG_DONTWAIT));
			else
				expect(send(clients[i][j], "hello", 5, MSG_NOSIGNAL) == 5 && recv(accepted, found, 8, MSG_DONTWAIT) == 5, "client %d of %d isn't heard", j, i);
			expect(send(accepted, "hello", 5, MSG_NOSIGNAL) == 5 && recv(clients[i][j], found, 8, MSG_DONTWAIT) == 5, "client %d of %d hears nothing", j, i);
		}
		expect(accept(servers[i], NULL, NULL) == -1 && errno == EAGAIN, "one more waits at %d", i);
	}
	return report();
}

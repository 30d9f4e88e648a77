/* Unix sockets whose peer was closed without having read all: the error comes after what is queued. */
#include "wait.h"
#include <sys/socket.h>

int main(void) {
	int pairs[3][2];
	char found[8];
	for (int i = 0; i < 3; i++) {
		must(socketpair(AF_UNIX, (i == 2 ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_NONBLOCK, 0, pairs[i]));
		must(send(pairs[i][0], "unread", 6, 0));
		if (i == 1)
			must(send(pairs[i][1], "read", 4, 0));
		must(close(pairs[i][1]));
	}

	freeze_here();
	spoil(recv(pairs[0][0], found, 8, 0););

	same("what is queued", 4, recv(pairs[1][0], found, 8, 0));
	for (int i = 0; i < 3; i++) {
		expect(recv(pairs[i][0], found, 8, 0) == -1 && errno == ECONNRESET, "%d has no error", i);
		same("reading after that", 0, recv(pairs[i][0], found, 8, 0));
	}
	return report();
}

/* A datagram socket, on descriptor 77, whose peer has no name and is connected to nothing. */
#include "../programs/wait.h"
#include <sys/socket.h>

int main(void) {
	int pair[2];
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	must(dup2(pair[0], 77) | close(pair[0]));
	must(connect(pair[1], &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
	freeze_here();
	char found[8];
	expect(send(77, "hello", 5, 0) == 5 && recv(pair[1], found, 8, 0) == 5, "nobody gets what it sends");
	return report();
}

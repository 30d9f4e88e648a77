/* Calls on sockets with SO_RCVTIMEO and SO_SNDTIMEO end by it, with what was left of it when the freeze came. */
// after: 0.8
// never: restored_twice
/* Frozen twice in the same call, they wait anew the second time: nothing tells what was left of the first (README, limits). */
#include "waits.h"
#include <sys/socket.h>
#include <sys/un.h>

static int limited(int file, int option) {
	must(setsockopt(file, SOL_SOCKET, option, &(struct timeval){2, 0}, sizeof(struct timeval)));
	return file;
}

static int listener(void) {
	int file = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(file, (void *)&(struct sockaddr_un){.sun_family = AF_UNIX}, 2));
	must(listen(file, 1));
	return file;
}

static long receive(void) {
	int pair[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	return RAW(SYS_recvfrom, limited(pair[0], SO_RCVTIMEO), &(char){0}, 1, 0, NULL, NULL);
}

static long receive_datagram(void) {
	int pair[2];
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	return RAW(SYS_read, limited(pair[0], SO_RCVTIMEO), &(char){0}, 1);
}

static long accept_(void) { return RAW(SYS_accept, limited(listener(), SO_RCVTIMEO), NULL, NULL); }

static long send_(void) {
	int pair[2];
	char bytes[4096] = "";
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	while (send(pair[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
	start = now(CLOCK_MONOTONIC);
	return RAW(SYS_sendto, limited(pair[0], SO_SNDTIMEO), bytes, sizeof bytes, 0, NULL, 0);
}

static const struct wait waits[] = {
	{"recv", receive, -EAGAIN, 0}, {"read", receive_datagram, -EAGAIN, 0}, {"accept", accept_, -EAGAIN, 0}, {"send", send_, -EAGAIN, 0},
};

int main(int count, char **arguments) { return all_of(WAITS(waits), 2); }

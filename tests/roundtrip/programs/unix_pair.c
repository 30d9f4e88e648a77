/* Pairs of unix sockets: what is queued in them, their ends in two processes, shut down, options, credentials of the peer. */
// arguments: stream | dgram | seqpacket
#include "wait.h"
#include <sys/socket.h>

static const char *told[] = {"first", "the second message", "", "the fourth"};

int main(int count, char **arguments) {
	int type = count < 2 || arguments[1][1] == 't' ? SOCK_STREAM : arguments[1][1] == 'g' ? SOCK_DGRAM : SOCK_SEQPACKET;
	int pair[2], closed[2], value = 0;
	socklen_t size = sizeof value;
	struct ucred peer, peer_after;
	static char bytes[50000], found[50000];
	must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair));
	must(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, closed));
	must(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){77, 500000}, sizeof(struct timeval)));
	must(setsockopt(closed[0], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	must(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &(int){100000}, sizeof(int)));
	for (int i = 0; i < 4; i++)
		must(send(pair[1], told[i], strlen(told[i]), 0));
	fill(bytes, sizeof bytes, 1);
	must(send(pair[1], bytes, sizeof bytes, 0));
	must(send(pair[0], "the other way", 13, 0));
	must(send(closed[1], "last", 4, 0));
	must(shutdown(closed[1], SHUT_WR));
	size = sizeof peer;
	must(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &size));
	pid_t child = must(fork());
	if (child == 0) {
		close(pair[0]);
		wait_for("check");
		spoil(must(recv(pair[1], found, 13, 0)););
		same("the other way", 13, recv(pair[1], found, sizeof found, MSG_DONTWAIT));
		must(send(pair[1], "from the child", 14, 0));
		_exit(0);
	}
	close(pair[1]);

	freeze_here();
	join(child);

	if (type == SOCK_STREAM)
		same("reading the stream", 33, recv(pair[0], found, 33, MSG_WAITALL));
	for (int i = 0; i < 4 && type != SOCK_STREAM; i++) {
		same("reading a message", strlen(told[i]), recv(pair[0], found, sizeof found, MSG_DONTWAIT));
		expect(!memcmp(found, told[i], strlen(told[i])), "it is %.20s", found);
	}
	same("reading the long message", sizeof bytes, recv(pair[0], found, sizeof found, type == SOCK_STREAM ? MSG_WAITALL : 0));
	expect(!memcmp(found, bytes, sizeof bytes), "it holds other bytes");
	same("reading from the child", 14, recv(pair[0], found, sizeof found, 0));
	if (type != SOCK_DGRAM)
		same("reading without a peer", 0, recv(pair[0], found, sizeof found, MSG_DONTWAIT));
	same("reading from one that was shut down", 4, recv(closed[0], found, 100, 0));
	ssize_t end = recv(closed[0], found, 100, 0);
	expect(type == SOCK_DGRAM ? end == -1 : end == 0, "after that: %ld", end);
	expect(send(closed[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "what was shut down takes more");
	same("flags", O_RDWR | O_NONBLOCK, fcntl(closed[0], F_GETFL));
	same("close-on-exec", FD_CLOEXEC, fcntl(pair[0], F_GETFD));
	struct timeval limit;
	size = sizeof limit;
	must(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, &size));
	expect(limit.tv_sec == 77 && limit.tv_usec == 500000, "SO_RCVTIMEO is %ld.%06ld", limit.tv_sec, limit.tv_usec);
	size = sizeof value;
	must(getsockopt(closed[0], SOL_SOCKET, SO_PASSCRED, &value, &size));
	same("SO_PASSCRED", 1, value);
	size = sizeof peer;
	must(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer_after, &size));
	expect(!memcmp(&peer, &peer_after, sizeof peer), "peer was %d %d, is %d %d", peer.pid, peer.uid, peer_after.pid, peer_after.uid);
	return report();
}

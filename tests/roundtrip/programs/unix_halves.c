/* Pairs of datagram unix sockets, one end of which has left the other: it is connected to a name, or to nothing. What had been sent waits. */
#include "unix_names.h"

enum { ALONE, ELSEWHERE, NAMED, ERROR, COUNT };
const char *const names[] = {"/work/elsewhere", "@half"};
static int pairs[COUNT][2];

static void leave(int number) {
	must(connect(pairs[number][1], &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
}

static void has(int number, int end, const char *text) {
	char found[32] = "";
	ssize_t size = recv(pairs[number][end], found, 32, MSG_DONTWAIT);
	expect(size == (ssize_t)strlen(text) && !memcmp(found, text, size), "end %d of pair %d has %zd bytes, %s", end, number, size, found);
}

static void ends(int number) {
	expect(recv(pairs[number][0], (char[1]){}, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "pair %d has more", number);
	expect(recv(pairs[number][1], (char[1]){}, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "the end that left pair %d has more", number);
}

int main(void) {
	int box = named(SOCK_DGRAM, 0), error = 0;
	for (int i = 0; i < COUNT; i++) {
		must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pairs[i]));
		must(send(pairs[i][1], "before", 6, 0));
		must(send(pairs[i][0], "thrown away", 11, 0));
		if (i == ERROR)
			has(i, 0, "before");
		leave(i);
		if (i != ERROR) {
			must(getsockopt(pairs[i][0], SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}));
			same("error", ECONNRESET, error);
			must(send(pairs[i][0], "one", 3, 0)), must(send(pairs[i][0], "another", 7, 0));
		}
	}
	tie(pairs[ELSEWHERE][1], 0);
	struct sockaddr_un half;
	must(bind(pairs[NAMED][0], (struct sockaddr *)&half, address(1, &half)));

	freeze_here();
	spoil(must(recv(pairs[ALONE][0], (char[1]){}, 1, 0));)

	must(getsockopt(pairs[ERROR][0], SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}));
	same("an error that nobody has read", ECONNRESET, error);
	ends(ERROR);
	for (int i = 0; i < ERROR; i++) {
		has(i, 0, "before");
		if (i == NAMED) {
			struct sockaddr_un from = {0};
			socklen_t length = sizeof from;
			expect(recvfrom(pairs[i][1], (char[3]){}, 3, 0, (struct sockaddr *)&from, &length) == 3, "its datagram has gone");
			expect(!strcmp(from.sun_path + 1, "half"), "it came from %s", from.sun_path + 1);
		} else
			has(i, 1, "one");
		has(i, 1, "another");
		ends(i);
	}
	/* Whom they still reach. */
	must(send(pairs[ALONE][0], "more", 4, 0)), must(send(pairs[NAMED][0], "more", 4, 0));
	has(ALONE, 1, "more"), has(NAMED, 1, "more");
	expect(send(pairs[ALONE][1], "more", 4, 0) == -1 && errno == ENOTCONN, "the end that left is connected");
	expect(send(pairs[ELSEWHERE][0], "more", 4, MSG_DONTWAIT) == -1 && errno == EPERM, "the end that is connected elsewhere takes more");
	expect(send(pairs[ELSEWHERE][1], "there", 5, 0) == 5 && recv(box, (char[5]){}, 5, MSG_DONTWAIT) == 5, "it does not reach the other");
	is_named("the peer of one that left", pairs[ELSEWHERE][1], 0, true);
	return report();
}

/* One long write that somebody reads slowly, so that it is cut short anew at each hold. */
#include "programs/wait.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SIZE = 2000000, PART = SIZE / 8 };
static char bytes[SIZE], got[SIZE];

static long write_all(int to, bool as_message) {
	struct iovec parts[8];
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 8};
	for (int i = 0; i < 8; i++)
		parts[i] = (struct iovec){bytes + i * PART, PART};
	return as_message ? sendmsg(to, &message, 0) : write(to, bytes, SIZE);
}

int main(int count, char **arguments) {
	bool as_message = count > 1 && !strcmp(arguments[1], "sendmsg");
	int ends[2];
	fill(bytes, SIZE, 3);
	must(as_message ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends));
	pid_t child = must(fork());
	if (child == 0) {
		same("what is written at once", SIZE, write_all(ends[1], as_message));
		_exit(0);
	}
	say("ready");
	long taken = 0;
	struct pollfd ready = {ends[0], POLLIN, 0};
	while (taken < SIZE && poll(&ready, 1, 60000) > 0) {
		bool slowly = access(in_work("check"), F_OK) != 0;
		taken += must(read(ends[0], got + taken, slowly ? 1500 : SIZE - taken));
		if (slowly)
			nanosleep(&(struct timespec){.tv_nsec = 15000000}, NULL);
	}
	same("what is read", SIZE, taken);
	expect(!memcmp(got, bytes, SIZE), "other bytes");
	join(child);
	return report();
}

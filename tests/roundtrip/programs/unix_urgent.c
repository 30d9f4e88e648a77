/* A byte that was sent out of band (MSG_OOB) and waits at a unix socket: before, within and after other data, and for one
 * that gets it in line (SO_OOBINLINE). */
#include "wait.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

static const char *const before[] = {"", "before", "before"}, *const after[] = {"after", "after", ""};

int main(void) {
	int pairs[3][2], inline_[2], at = 0;
	char found[32];
	for (int i = 0; i < 3; i++) {
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]));
		must(send(pairs[i][0], before[i], strlen(before[i]), 0));
		must(send(pairs[i][0], "!", 1, MSG_OOB));
		must(send(pairs[i][0], after[i], strlen(after[i]), 0));
	}
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, inline_));
	must(setsockopt(inline_[1], SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)));
	must(send(inline_[0], "before", 6, 0));
	must(send(inline_[0], "!", 1, MSG_OOB));
	must(send(inline_[0], "after", 5, 0));

	freeze_here();
	spoil(must(recv(pairs[1][1], found, 1, MSG_OOB)););

	for (int i = 0; i < 3; i++) {
		if (*before[i]) {
			expect(recv(pairs[i][1], found, 32, MSG_DONTWAIT) == 6 && !memcmp(found, "before", 6), "%d: not what came before", i);
		}
		must(ioctl(pairs[i][1], 0x8905 /* SIOCATMARK */, &at));
		same("the mark", 1, at);
		expect(recv(pairs[i][1], found, 32, MSG_OOB) == 1 && found[0] == '!', "%d: nothing is urgent", i);
		if (*after[i])
			expect(recv(pairs[i][1], found, 32, MSG_DONTWAIT) == 5 && !memcmp(found, "after", 5), "%d: not what came after", i);
		expect(recv(pairs[i][1], found, 32, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%d: more has come", i);
	}
	expect(recv(inline_[1], found, 32, MSG_DONTWAIT) == 6 && !memcmp(found, "before", 6), "in line: not what came before");
	must(ioctl(inline_[1], 0x8905, &at));
	same("the mark in line", 1, at);
	expect(recv(inline_[1], found, 32, MSG_DONTWAIT) == 6 && !memcmp(found, "!after", 6), "in line: not what came after");
	return report();
}

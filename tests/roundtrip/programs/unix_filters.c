/* Filters at unix sockets, with what has come through them, also one that cannot be taken off; and empty packets at the end of a queue. */
#include "wait.h"
#include <linux/filter.h>
#include <sys/socket.h>

/* Two bytes of what begins with an "a", nothing of all else. */
static struct sock_filter two_of_a[] = {{BPF_LD | BPF_B | BPF_ABS, 0, 0, 0}, {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 'a'}, {BPF_RET | BPF_K, 0, 0, 2}, {BPF_RET | BPF_K, 0, 0, 0}};

static void is(const char *what, int fd, const char *wanted) {
	char found[8] = "";
	ssize_t got = recv(fd, found, sizeof found - 1, MSG_DONTWAIT);
	expect(got == (ssize_t)strlen(wanted) && !strcmp(found, wanted), "%s: %zd bytes, \"%s\" instead of \"%s\"", what, got, found, wanted);
}

int main(void) {
	struct sock_fprog program = {sizeof two_of_a / sizeof *two_of_a, two_of_a};
	int letters[2], packets[2], none;
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, letters));
	must(setsockopt(letters[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	must(setsockopt(letters[0], SOL_SOCKET, SO_LOCK_FILTER, &(int){1}, sizeof(int)));
	must(send(letters[1], "abc", 3, 0));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	must(send(packets[1], "", 0, 0) + send(packets[1], "ab", 2, 0) + send(packets[1], "", 0, 0) + send(packets[1], "", 0, 0));

	freeze_here();
	spoil(must(recv(letters[0], &none, 1, 0)););

	is("what had come", letters[0], "ab");
	must(send(letters[1], "azz", 3, 0));
	is("what comes now", letters[0], "az");
	must(send(letters[1], "bzz", 3, 0));
	same("what is dropped", -1, recv(letters[0], &none, 1, MSG_DONTWAIT));
	same("taking the filter off", -1, setsockopt(letters[0], SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none));
	is("the first packet", packets[0], "");
	is("the second", packets[0], "ab");
	is("the third", packets[0], "");
	is("the fourth", packets[0], "");
	same("a fifth", -1, recv(packets[0], &none, 1, MSG_DONTWAIT));
	return report();
}

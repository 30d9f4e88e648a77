/* Strict mode: only read, write and exit are left. */
#include "wait.h"
#include <linux/seccomp.h>
#include <sys/prctl.h>

int main(void) {
	int in[2], out[2], status;
	char answer = 0;
	must(pipe(in));
	must(pipe(out));
	pid_t children[2];
	for (int i = 0; i < 2; i++) {
		if ((children[i] = must(fork())))
			continue;
		char byte = 0;
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		while (read(in[0], &byte, 1) == 1 && byte == 'w') /* works on until the second byte */
			byte += write(out[1], "w", 1) - 1;
		spoil(byte = '!';);
		if (byte == 'c' && write(out[1], "c", 1) == 1)
			getppid(); /* kills */
		syscall(SYS_exit, 7);
	}
	must(write(in[1], "ww", 2));
	for (int i = 0; i < 2; i++)
		must(read(out[0], &answer, 1));

	freeze_here();
	for (int i = 0; i < 2; i++) {
		must(write(in[1], "w", 1));
		expect(read(out[0], &answer, 1) == 1 && answer == 'w', "no work is done");
	}
	must(write(in[1], "cc", 2));
	for (int i = 0; i < 2; i++) {
		expect(waitpid(children[i], &status, 0) == children[i], "no child");
		expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "child %d ended with %#x", i, status);
	}
	must(fcntl(out[0], F_SETFL, O_NONBLOCK));
	for (int i = 0; i < 2; i++)
		expect(read(out[0], &answer, 1) == 1 && answer == 'c', "the answer is %c", answer);
	return report();
}

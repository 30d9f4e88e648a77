/* A process that another one traces, as strace and debuggers do. */
#include "../programs/wait.h"
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(void) {
	pid_t child = must(fork());
	if (child == 0) {
		must(prctl(PR_SET_NAME, "debugged"));
		must(ptrace(PTRACE_TRACEME, 0, 0, 0));
		must(raise(SIGSTOP));
		for (;;)
			pause();
	}
	must(waitpid(child, NULL, 0));
	must(ptrace(PTRACE_CONT, child, 0, 0));
	freeze_here();
	must(kill(child, SIGKILL));
	must(waitpid(child, NULL, 0));
	return report();
}

/* A child that its parent waits for in vfork(2). */
#include "../programs/wait.h"

static int child_of(void *unused) {
	(void)unused;
	say("ready");
	while (access("/work/check", F_OK) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	return 0;
}

int main(void) {
	static char stack[65536] __attribute__((aligned(16)));
	pid_t child = must(clone(child_of, stack + sizeof stack, SIGCHLD | CLONE_VM | CLONE_VFORK, NULL));
	freeze_here();
	join(child);
	return report();
}

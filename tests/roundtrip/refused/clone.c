/* A child that its parent waits for in vfork(2); children that would be in a pid namespace that has ended. */
// arguments: vfork | ended
#include "../programs/wait.h"

static int child_of(void *unused) {
	(void)unused;
	say("ready");
	while (access("/work/check", F_OK) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	return 0;
}

int main(int count, char **arguments) {
	static char stack[65536] __attribute__((aligned(16)));
	if (count > 1 && arguments[1][0] == 'e') {
		must(unshare(CLONE_NEWPID));
		pid_t first = must(fork());
		if (first == 0)
			return 0;
		join(first);
		freeze_here();
		expect(fork() == -1 && errno == ENOMEM, "a child came to be");
		return report();
	}
	pid_t child = must(clone(child_of, stack + sizeof stack, SIGCHLD | CLONE_VM | CLONE_VFORK, NULL));
	freeze_here();
	join(child);
	return report();
}

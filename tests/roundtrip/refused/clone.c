/* A child that its parent waits for in vfork(2), or that is the first of a pid namespace. */
// arguments: vfork | namespace
#include "../programs/wait.h"

static int child_of(void *namespace) {
	if (!namespace)
		say("ready");
	while (access("/work/check", F_OK) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	return namespace && getpid() != 1;
}

int main(int count, char **arguments) {
	static char stack[65536] __attribute__((aligned(16)));
	bool waits = count > 1 && arguments[1][0] == 'v';
	int flags = waits ? CLONE_VM | CLONE_VFORK : CLONE_NEWPID;
	pid_t child = must(clone(child_of, stack + sizeof stack, SIGCHLD | flags, waits ? NULL : "yes"));
	freeze_here();
	join(child);
	return report();
}

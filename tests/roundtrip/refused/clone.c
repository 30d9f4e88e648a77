/* A child that shares the memory without being a thread, or that is the first of a pid namespace. */
// arguments: memory | namespace
#include "../programs/wait.h"

static int child_of(void *namespace) {
	while (access("/work/check", F_OK) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	return namespace && getpid() != 1;
}

int main(int count, char **arguments) {
	static char stack[65536] __attribute__((aligned(16)));
	bool memory = count > 1 && arguments[1][0] == 'm';
	pid_t child = must(clone(child_of, stack + sizeof stack, SIGCHLD | (memory ? CLONE_VM : CLONE_NEWPID), memory ? NULL : "yes"));
	freeze_here();
	join(child);
	return report();
}

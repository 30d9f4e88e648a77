/* A process that SIGTSTP has stopped, and whose group is orphaned since, as its parent has left for a session of its own: it stays stopped. */
// never: set_back restored_twice
#include "state.h"

static void leave(volatile int *ran) {
	int status = 0;
	pid_t child = must(fork());
	if (child == 0) {
		setpgid(0, 0);
		raise(SIGTSTP);
		*ran = 1;
		_exit(5);
	}
	must(waitpid(child, &status, WUNTRACED));
	must(setsid());
	say("left");
	wait_for("check");
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	spoil(kill(child, SIGCONT); nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL););
	expect(!*ran && state(child) == 'T', "it isn't stopped, but %c", state(child));
	same("stops that are told again", 0, waitpid(child, &status, WUNTRACED | WNOHANG));
	kill(child, SIGCONT);
	expect(waitpid(child, &status, 0) == child && status == 5 << 8, "it ended with %#x", status);
	_exit(0);
}

int main(void) {
	volatile int *ran = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t parent = must(fork());
	if (parent == 0)
		leave(ran);
	wait_for("left");
	freeze_here();
	join(parent);
	return report();
}

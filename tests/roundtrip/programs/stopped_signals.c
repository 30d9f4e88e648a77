/* A stopped process with signals that nothing but its stop keeps from it: they come when it goes on; and SIGTSTP and SIGCONT that are blocked. */
#include "state.h"

static volatile int *shared, first, values[4], count;

static void on_first(__attribute__((unused)) int number) { first++; }

static void on_value(__attribute__((unused)) int number, siginfo_t *info, __attribute__((unused)) void *context) {
	if (count < 4)
		values[count++] = info->si_value.sival_int;
}

static void rest(long milliseconds) { nanosleep(&(struct timespec){.tv_nsec = milliseconds * 1000000}, NULL); }

static void block(int how, int number) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	sigprocmask(how, &set, NULL);
}

static void handles(void) {
	struct sigaction action = {.sa_sigaction = on_value, .sa_flags = SA_SIGINFO};
	signal(SIGUSR1, on_first);
	sigaction(SIGRTMIN + 2, &action, NULL);
	shared[0] = 1;
	while (!shared[4]) {}
	_exit(first == 1 && count == 2 && values[0] == 11 && values[1] == 12 ? 9 : 16 * first + count);
}

static void is_ended(void) {
	shared[1] = 1;
	while (true)
		pause();
}

static void is_to_stop(void) {
	setpgid(0, 0); /* SIGTSTP doesn't stop an orphaned group */
	block(SIG_BLOCK, SIGTSTP);
	shared[2] = 1;
	wait_for("unblock");
	block(SIG_UNBLOCK, SIGTSTP);
	_exit(4);
}

static void is_to_go_on(void) {
	block(SIG_BLOCK, SIGCONT);
	signal(SIGCONT, on_first);
	shared[3] = 1;
	wait_for("unblock");
	if (first)
		_exit(60);
	block(SIG_UNBLOCK, SIGCONT);
	_exit(first == 1 ? 5 : 61);
}

static void (*const all[])(void) = {handles, is_ended, is_to_stop, is_to_go_on};

static void ends(pid_t child, int wanted) {
	int status = 0;
	expect(waitpid(child, &status, 0) == child && status == wanted, "a child ended with %#x, not %#x", status, wanted);
}

static void stops(pid_t child, int wanted) {
	int status = 0;
	expect(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == wanted, "no stop by %d: %#x", wanted, status);
}

int main(void) {
	pid_t children[4];
	shared = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < 4; i++) {
		if (!(children[i] = must(fork())))
			all[i]();
		while (!shared[i])
			sched_yield();
	}
	for (int i = 0; i < 2; i++) {
		must(kill(children[i], SIGSTOP));
		while (state(children[i]) != 'T')
			sched_yield();
	}
	must(kill(children[0], SIGUSR1));
	must(sigqueue(children[0], SIGRTMIN + 2, (union sigval){.sival_int = 11}));
	must(sigqueue(children[0], SIGRTMIN + 2, (union sigval){.sival_int = 12}));
	must(kill(children[1], SIGTERM));
	must(kill(children[2], SIGTSTP));
	must(kill(children[3], SIGCONT));

	freeze_here();
	rest(50);
	spoil(kill(children[0], SIGUSR2); kill(children[0], SIGCONT); waitpid(children[0], NULL, 0); _exit((differs("it is gone"), 1)););

	expect(state(children[0]) == 'T' && state(children[1]) == 'T', "they are %c and %c", state(children[0]), state(children[1]));
	shared[4] = 1;
	must(kill(children[0], SIGCONT));
	ends(children[0], 9 << 8);
	stops(children[1], SIGSTOP);
	must(kill(children[1], SIGCONT));
	ends(children[1], SIGTERM);
	say("unblock");
	ends(children[3], 5 << 8);
	stops(children[2], SIGTSTP);
	must(kill(children[2], SIGCONT));
	ends(children[2], 4 << 8);
	return report();
}

/* Sleeps that a handler ends: also where the timer rings just as the program is let go on, before the call is made again. */
// never: restored_twice set_back
#include "wait.h"
#include <poll.h>
#include <sys/time.h>

enum { CHILDREN = 60 };

static volatile int rung;

static void handler(__attribute__((unused)) int number) { rung = 1; }

static int sleeps(int kind) {
	if (kind == 0)
		return nanosleep(&(struct timespec){60, 0}, NULL);
	if (kind == 1)
		return poll(NULL, 0, 60000);
	return syscall(SYS_rt_sigtimedwait, &(sigset_t){{1}}, NULL, &(struct timespec){60, 0}, 8);
}

int main(void) {
	pid_t children[CHILDREN];
	for (int i = 0; i < CHILDREN; i++) {
		if ((children[i] = must(fork())))
			continue;
		struct sigaction action = {.sa_handler = handler, .sa_flags = i & 1 ? SA_RESTART : 0};
		sigaction(SIGALRM, &action, NULL);
		must(setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 400000 + 8000 * i}}, NULL));
		double start = now(CLOCK_MONOTONIC);
		int result = sleeps(i % 3);
		double took = now(CLOCK_MONOTONIC) - start;
		spoil(result = 0;);
		expect(rung && result == -1 && errno == EINTR, "child %d: %d after %f s", i, result, took);
		expect(took < 30, "child %d: even %f s", i, took);
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	freeze_here();
	for (int i = 0; i < CHILDREN; i++)
		join(children[i]);
	return report();
}

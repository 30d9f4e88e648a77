/* A timer with an interval goes on ringing, and none of its rings kills or is lost for long. */
#include "wait.h"
#include <sys/time.h>

static volatile int rung;

static void handler(__attribute__((unused)) int number) { rung++; }

int main(void) {
	sigaction(SIGALRM, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART}, NULL);
	must(setitimer(ITIMER_REAL, &(struct itimerval){{0, 2000}, {0, 2000}}, NULL));
	double start = now(CLOCK_MONOTONIC);
	freeze_here();
	spoil(setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL););
	int before = rung;
	for (double end = now(CLOCK_MONOTONIC) + 5; rung < before + 20 && now(CLOCK_MONOTONIC) < end;)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	expect(rung >= before + 20, "it has rung only %d times since the freeze", rung - before);
	expect(rung <= (now(CLOCK_MONOTONIC) - start) / 0.002 + 5, "it rang %d times", rung);
	return report();
}

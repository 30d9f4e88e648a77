/* setitimer: interval and time left of all three, and that they ring. */
#include "wait.h"
#include <sys/time.h>

static volatile int rung;

static void handler(__attribute__((unused)) int number) { rung++; }

static double seconds(struct timeval time) { return time.tv_sec + time.tv_usec / 1e6; }

int main(void) {
	struct itimerval set[] = {{{7, 250000}, {1000, 500000}}, {{0, 0}, {3000, 7}}, {{11, 1}, {5000, 0}}}, left;
	signal(SIGALRM, handler);
	signal(SIGPROF, handler);
	for (int i = 0; i < 3; i++)
		must(setitimer(i, &set[i], NULL));

	freeze_here();
	spoil(setitimer(1, &(struct itimerval){0}, NULL););

	for (int i = 0; i < 3; i++) {
		must(getitimer(i, &left));
		double was = seconds(set[i].it_value), is = seconds(left.it_value);
		expect(is <= was + 0.05 && is > was - 60, "timer %d: %f s left of %f", i, is, was);
		/* The kernel keeps CPU-time intervals in its own units. */
		expect(seconds(left.it_interval) - seconds(set[i].it_interval) < 0.05 && seconds(left.it_interval) >= seconds(set[i].it_interval),
			"timer %d: interval is %f s", i, seconds(left.it_interval));
	}
	same("rung too early", 0, rung);
	must(setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 1000}}, NULL));
	while (!rung)
		sched_yield();
	return report();
}

/* Fifteen hundred POSIX timers, each of which has its own time left. */
#include "wait.h"

enum { TIMERS = 1500, FAR = 10000 };

int main(void) {
	static timer_t timers[TIMERS];
	struct itimerspec left;
	for (int i = 0; i < TIMERS; i++) {
		struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = i};
		must(timer_create(CLOCK_MONOTONIC, &event, &timers[i]));
		must(timer_settime(timers[i], 0, &(struct itimerspec){{i % 7, 0}, {FAR + i, 0}}, NULL));
	}
	freeze_here();
	spoil(must(timer_settime(timers[TIMERS - 1], 0, &(struct itimerspec){{0, 0}, {1, 0}}, NULL)););
	for (int i = 0; i < TIMERS; i++) {
		must(timer_gettime(timers[i], &left));
		long late = FAR + i - left.it_value.tv_sec;
		expect(late >= 0 && late < 600, "timer %d has %ld s left", i, (long)left.it_value.tv_sec);
		same("interval", i % 7, left.it_interval.tv_sec);
	}
	return report();
}

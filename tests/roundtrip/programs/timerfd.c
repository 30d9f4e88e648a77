/* timerfds: relative, absolute, with interval, rung and unread, never set. One set to an absolute time of the world rings then. */
// apart: 0.2
#include "wait.h"
#include <sys/timerfd.h>

enum { TIMERS = 7 };

int main(void) {
	static const struct { clockid_t clock; int flags; struct itimerspec set; } kinds[TIMERS] = {
		{CLOCK_MONOTONIC, 0, {{0, 0}, {1000, 5}}},
		{CLOCK_MONOTONIC, 0, {{20, 7}, {1000, 0}}},
		{CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, {{0, 0}, {4000000000, 0}}},
		{CLOCK_BOOTTIME, 0, {{3, 0}, {500, 0}}},
		{CLOCK_MONOTONIC, 0, {{0, 1000000}, {0, 1000000}}}, /* has rung */
		{CLOCK_REALTIME, 0, {{0, 0}, {0, 1}}}, /* has rung once */
		{CLOCK_MONOTONIC, 0, {{0, 0}, {0, 0}}}};
	struct itimerspec was[TIMERS], is;
	int timers[TIMERS];
	uint64_t ticks = 0;
	for (int i = 0; i < TIMERS; i++) {
		timers[i] = must(timerfd_create(kinds[i].clock, TFD_NONBLOCK | (i & 1 ? TFD_CLOEXEC : 0)));
		must(timerfd_settime(timers[i], kinds[i].flags, &kinds[i].set, NULL));
	}
	double start = now(CLOCK_MONOTONIC);
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	for (int i = 0; i < TIMERS; i++)
		must(timerfd_gettime(timers[i], &was[i]));

	freeze_here();
	spoil(expect(read(timers[5], &ticks, 8) == 8, "-"); must(timerfd_settime(timers[3], 0, &kinds[1].set, NULL)););

	for (int i = 0; i < TIMERS; i++) {
		must(timerfd_gettime(timers[i], &is));
		expect(is.it_value.tv_sec <= was[i].it_value.tv_sec && is.it_value.tv_sec > was[i].it_value.tv_sec - 60,
			"timer %d: %ld s left, were %ld", i, is.it_value.tv_sec, was[i].it_value.tv_sec);
		double at = now(CLOCK_REALTIME) + is.it_value.tv_sec + is.it_value.tv_nsec / 1e9 - 4e9;
		expect(i != 2 || (at > -0.05 && at < 0.05), "timer 2 rings %f s late", at);
		expect(is.it_interval.tv_sec == kinds[i].set.it_interval.tv_sec && is.it_interval.tv_nsec == kinds[i].set.it_interval.tv_nsec, "timer %d: another interval", i);
		same("close-on-exec", i & 1, fcntl(timers[i], F_GETFD));
		ticks = 0;
		ssize_t got = read(timers[i], &ticks, 8);
		if (i == 4)
			expect(ticks >= 19 && ticks <= (now(CLOCK_MONOTONIC) - start) / 0.001 + 5, "timer 4: %ld ticks", ticks);
		else if (i == 5)
			same("ticks of the one that has rung", 1, ticks);
		else
			expect(got == -1 && errno == EAGAIN, "timer %d has rung %ld times", i, ticks);
	}
	must(timerfd_settime(timers[6], 0, &kinds[5].set, NULL));
	must(fcntl(timers[6], F_SETFL, 0));
	expect(read(timers[6], &ticks, 8) == 8, "it can't be set");
	return report();
}

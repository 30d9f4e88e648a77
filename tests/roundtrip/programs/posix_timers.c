/* POSIX timers: ids after deletions and high ones, clocks, notifications, intervals, time left; and that they ring. */
#include "wait.h"

enum { TIMERS = 7 };

static int create(clockid_t clock, int notify, int number, int value) {
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = number, .sigev_value.sival_int = value};
	int id = -1;
	event._sigev_un._tid = notify == SIGEV_THREAD_ID ? gettid() : 0;
	must(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

int main(void) {
	struct itimerspec set = {{30, 7}, {3600, 0}}, left[TIMERS], is;
	sigset_t signals;
	siginfo_t info = {0};
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN);
	sigaddset(&signals, SIGRTMIN + 1);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	for (int i = 0; i < 10; i++) /* so that ids aren't 0, 1, 2 */
		if (i != 4)
			must(syscall(SYS_timer_delete, create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0)));
	int ids[TIMERS] = {create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 1), create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 2),
		create(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0), create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN, 3),
		create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 1, 4), create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 5),
		create(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN, 6)};
	must(syscall(SYS_timer_delete, ids[5]));
	for (int i = 0; i < TIMERS; i++)
		if (i != 5 && i != 2) { /* 5 is gone, 2 isn't armed */
			must(syscall(SYS_timer_settime, ids[i], 0, &set, NULL));
			must(syscall(SYS_timer_gettime, ids[i], &left[i]));
		}

	freeze_here();
	spoil(struct itimerspec other = {{30, 7}, {9000, 0}}; must(syscall(SYS_timer_settime, ids[3], 0, &other, NULL)););

	for (int i = 0; i < TIMERS; i++) {
		int got = syscall(SYS_timer_gettime, ids[i], &is);
		expect((got == 0) == (i != 5), "timer %d: gettime is %d: %s", i, got, strerror(errno));
		if (got || i == 2)
			continue;
		expect(is.it_value.tv_sec <= left[i].it_value.tv_sec && is.it_value.tv_sec > 3540, "timer %d: %ld s left", i, is.it_value.tv_sec);
		same("interval", 30, is.it_interval.tv_sec);
		set = (struct itimerspec){{0, 0}, {0, 1000}};
		must(syscall(SYS_timer_settime, ids[i], 0, &set, NULL));
		int number = i == 1 || i == 4 ? SIGRTMIN + 1 : SIGRTMIN;
		if (i == 3 || i == 6)
			for (double end = now(CLOCK_THREAD_CPUTIME_ID) + 0.02; now(CLOCK_THREAD_CPUTIME_ID) < end;) {}
		expect(sigtimedwait(&signals, &info, &(struct timespec){5, 0}) == number, "timer %d doesn't ring", i);
		same("si_code", SI_TIMER, info.si_code);
		same("si_timerid", ids[i], info.si_timerid);
		same("si_value", i < 3 ? i + 1 : i == 3 ? 3 : i, info.si_value.sival_int);
	}
	expect(create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0) > ids[6], "a new timer takes an old id");
	return report();
}

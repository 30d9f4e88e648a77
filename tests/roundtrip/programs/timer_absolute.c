/* POSIX timers set to a time of CLOCK_REALTIME ring at that time, also again and again, and how long the freeze takes doesn't matter. */
// apart: 1
// never: set_back
#include "wait.h"

static int create(int number) {
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = number};
	int id = -1;
	must(syscall(SYS_timer_create, CLOCK_REALTIME, &event, &id));
	return id;
}

static double rings(int id) {
	struct itimerspec is;
	must(syscall(SYS_timer_gettime, id, &is));
	return now(CLOCK_REALTIME) + is.it_value.tv_sec + is.it_value.tv_nsec / 1e9;
}

int main(void) {
	struct timespec start;
	sigset_t blocked;
	siginfo_t info;
	sigfillset(&blocked);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	clock_gettime(CLOCK_REALTIME, &start);
	int once = create(SIGRTMIN), again = create(SIGRTMIN + 1), soon = create(SIGRTMIN + 2), relative = create(SIGRTMIN + 3);
	must(syscall(SYS_timer_settime, once, TIMER_ABSTIME, &(struct itimerspec){{0, 0}, {start.tv_sec + 1000, 7}}, NULL));
	must(syscall(SYS_timer_settime, again, TIMER_ABSTIME, &(struct itimerspec){{50, 0}, {start.tv_sec + 50, 0}}, NULL));
	must(syscall(SYS_timer_settime, soon, TIMER_ABSTIME, &(struct itimerspec){{0, 0}, {start.tv_sec + 2, 0}}, NULL));
	must(syscall(SYS_timer_settime, relative, 0, &(struct itimerspec){{0, 0}, {1000, 0}}, NULL));
	double was = rings(relative);
	freeze_here();
	spoil(must(syscall(SYS_timer_settime, once, 0, &(struct itimerspec){{0, 0}, {500, 0}}, NULL)););
	expect(rings(once) - start.tv_sec - 1000 < 0.01 && start.tv_sec + 1000 - rings(once) < 0.01, "once: in %f s", rings(once) - start.tv_sec);
	expect(rings(again) - start.tv_sec - 50 < 0.01 && start.tv_sec + 50 - rings(again) < 0.01, "again: in %f s", rings(again) - start.tv_sec);
	expect(rings(relative) > was - 0.01, "the relative one rings %f s too early", was - rings(relative));
	must(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &(struct timespec){start.tv_sec + 2, 250000000}, NULL));
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 2);
	expect(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == SIGRTMIN + 2, "it has not rung");
	return report();
}

/* A POSIX timer that has rung while its signal was blocked: pending, and rings again.
 * How often it has rung since can't be read from outside, and starts anew. */
#include "wait.h"

int main(void) {
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 99};
	struct itimerspec quick = {{0, 1000000}, {0, 1000000}};
	sigset_t signals;
	siginfo_t info = {0};
	int id = -1;
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN + 2);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
	must(syscall(SYS_timer_settime, id, 0, &quick, NULL));
	nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
	freeze_here();
	spoil(sigtimedwait(&signals, &info, &(struct timespec){1, 0}); syscall(SYS_timer_delete, id););
	expect(sigtimedwait(&signals, &info, &(struct timespec){1, 0}) == SIGRTMIN + 2, "it isn't pending");
	expect(info.si_code == SI_TIMER && info.si_value.sival_int == 99 && info.si_timerid == id, "another signal");
	expect(syscall(SYS_timer_getoverrun, id) == info.si_overrun, "timer_getoverrun tells another number");
	expect(sigtimedwait(&signals, &info, &(struct timespec){1, 0}) == SIGRTMIN + 2, "it doesn't ring again");
	return report();
}

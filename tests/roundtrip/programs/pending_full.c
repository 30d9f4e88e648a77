/* Signals that came when no more might wait (RLIMIT_SIGPENDING): the kernel knows no more of them than that they wait. */
#include "wait.h"
#include <sys/resource.h>

static sigset_t all;

static void take(int number) {
	siginfo_t info = {0};
	int got = syscall(SYS_rt_sigtimedwait, &all, &info, &(struct timespec){0}, 8);
	expect(got == number, "signal %d, not %d", got, number);
	expect(got != number || (info.si_code == SI_USER && info.si_pid == 0 && info.si_uid == 0), "signal %d tells more than it did", got);
}

static void *thread(__attribute__((unused)) void *nothing) {
	must(-pthread_kill(pthread_self(), SIGUSR2));
	say("sent");
	wait_for("check");
	take(SIGUSR2);
	say("taken");
	return NULL;
}

int main(void) {
	pthread_t other;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	struct rlimit most;
	must(getrlimit(RLIMIT_SIGPENDING, &most));
	most.rlim_cur = 0;
	must(setrlimit(RLIMIT_SIGPENDING, &most));
	pthread_create(&other, NULL, thread, NULL);
	wait_for("sent");
	must(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 5}));
	must(kill(getpid(), SIGRTMIN + 5));
	expect(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 5}) == -1 && errno == EAGAIN, "there is room");

	freeze_here();
	spoil(sigtimedwait(&all, NULL, &(struct timespec){0}););
	wait_for("taken"); /* the thread's own first */
	take(SIGUSR1);
	take(SIGRTMIN + 5);
	expect(sigtimedwait(&all, NULL, &(struct timespec){0}) == -1, "one too many");
	pthread_join(other, NULL);
	return report();
}

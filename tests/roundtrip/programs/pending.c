/* Pending signals of the process and of its threads, with their siginfo and in their order; then they are delivered. */
#include "wait.h"

static sigset_t all;
static pid_t sender;

static void take(const char *where, int number, int code, int value) {
	siginfo_t info = {0};
	int got = syscall(SYS_rt_sigtimedwait, &all, &info, &(struct timespec){0}, 8); /* libc changes si_code */
	expect(got == number, "%s: signal %d, not %d", where, got, number);
	if (got != number)
		return;
	same("si_code", code, info.si_code);
	same("si_value", value, code == SI_QUEUE ? info.si_value.sival_int : 0);
	same("si_pid", code == SI_TKILL || code == SI_QUEUE ? getpid() : sender, info.si_pid);
	same("si_uid", 0, info.si_uid);
}

static void *thread(__attribute__((unused)) void *nothing) {
	pthread_sigqueue(pthread_self(), SIGRTMIN + 3, (union sigval){.sival_int = 33});
	pthread_sigqueue(pthread_self(), SIGRTMIN + 3, (union sigval){.sival_int = 34});
	pthread_kill(pthread_self(), SIGUSR2);
	wait_for("check");
	take("a thread", SIGUSR2, SI_TKILL, 0);
	take("a thread", SIGRTMIN + 3, SI_QUEUE, 33);
	take("a thread", SIGRTMIN + 3, SI_QUEUE, 34);
	say("taken");
	return NULL;
}

int main(void) {
	pthread_t other;
	sigfillset(&all);
	sigdelset(&all, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	pthread_create(&other, NULL, thread, NULL);
	if ((sender = must(fork())) == 0) {
		kill(getppid(), SIGUSR1);
		kill(getppid(), SIGSEGV); /* not that of a fault */
		_exit(3);
	}
	siginfo_t info = {0};
	must(waitid(P_PID, sender, &info, WEXITED | WNOWAIT));
	for (int i = 0; i < 40; i++)
		must(sigqueue(getpid(), SIGRTMIN + (i & 1), (union sigval){.sival_int = 100 + i}));
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);

	freeze_here();
	spoil(sigtimedwait(&all, &info, &(struct timespec){0}););
	wait_for("taken"); /* the thread's own first */
	take("the process", SIGSEGV, SI_USER, 0);
	take("the process", SIGUSR1, SI_USER, 0);
	memset(&info, 0, sizeof info);
	expect(sigtimedwait(&all, &info, &(struct timespec){0}) == SIGCHLD, "no SIGCHLD");
	expect(info.si_code == CLD_EXITED && info.si_status == 3 && info.si_pid == sender, "another SIGCHLD");
	for (int i = 0; i < 40; i++)
		take("the process", SIGRTMIN + (i >= 20), SI_QUEUE, 100 + i % 20 * 2 + (i >= 20));
	expect(sigtimedwait(&all, &info, &(struct timespec){0}) == -1, "one too many");
	pthread_join(other, NULL);
	return report();
}

/* Signals that wait, of the process and of a thread, more than may by a limit that has been lowered since (RLIMIT_SIGPENDING). */
#include "wait.h"
#include <sys/resource.h>

enum { SIGNALS = 20, LIMIT = 4 };
static volatile int thread;

static void take_all(const char *whose, int first) {
	sigset_t all;
	siginfo_t info;
	sigfillset(&all);
	int taken = 0;
	/* A thread's own come first. */
	for (; taken < SIGNALS && sigtimedwait(&all, &info, &(struct timespec){0, 0}) > 0; taken++)
		expect(info.si_code == SI_QUEUE && info.si_value.sival_int == first + taken, "%s: number %d was %d, by %d", whose, taken,
		       info.si_value.sival_int, info.si_code);
	same(whose, SIGNALS, taken);
}

/* A signal that is not a real-time one comes first, and without a word of the kernel's loses what came with it if there is no room. */
static int number(int one) {
	return one ? SIGRTMIN + 3 : SIGUSR1;
}

static void *in_thread(__attribute__((unused)) void *nothing) {
	thread = gettid();
	wait_for("check");
	take_all("those of a thread", 200);
	return NULL;
}

int main(void) {
	pthread_t other;
	sigset_t all;
	struct rlimit limit;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	pthread_create(&other, NULL, in_thread, NULL);
	while (!thread)
		sched_yield();
	for (int i = 0; i < SIGNALS; i++) {
		must(sigqueue(getpid(), number(i), (union sigval){.sival_int = 100 + i}));
		siginfo_t info = {.si_code = SI_QUEUE, .si_pid = getpid(), .si_uid = getuid(), .si_value.sival_int = 200 + i};
		must(syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, number(i), &info));
	}
	must(getrlimit(RLIMIT_SIGPENDING, &limit));
	limit.rlim_cur = LIMIT;
	must(setrlimit(RLIMIT_SIGPENDING, &limit));
	freeze_here();
	spoil(raise(SIGHUP););
	pthread_join(other, NULL);
	take_all("those of the process", 100);
	must(getrlimit(RLIMIT_SIGPENDING, &limit));
	same("the limit", LIMIT, limit.rlim_cur);
	return report();
}

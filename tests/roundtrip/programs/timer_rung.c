/* POSIX timers that have rung while their signals were blocked: pending, with how often they have rung since (timer_getoverrun(2)), and
 * they ring on by their clock; of the process, of a thread, beside another signal of the same number, and once only. */
// never: set_back
#include "wait.h"

enum { EACH_MS = 5 };
static double began;
static volatile int thread;
static int of_process, of_thread, once, beside;

static int create(clockid_t clock, int notify, int number, int value) {
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = number, .sigev_value.sival_int = value};
	int id = -1;
	event._sigev_un._tid = thread;
	must(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static void start(int id, bool again) {
	struct itimerspec quick = {{0, again ? EACH_MS * 1000000 : 0}, {0, EACH_MS * 1000000}};
	must(syscall(SYS_timer_settime, id, 0, &quick, NULL));
}

/* How often it can have rung since then. */
static int rings(int id, clockid_t clock, double since) {
	struct itimerspec next;
	must(syscall(SYS_timer_gettime, id, &next));
	double last = now(clock) - EACH_MS / 1e3 + next.it_value.tv_sec + next.it_value.tv_nsec / 1e9;
	return next.it_interval.tv_nsec == 0 || last < since ? 0 : 1 + (int)((last - since) * 1000 / EACH_MS);
}

/* Take what has come of a signal; return for how many times that stands. In `signals`: how many had come, without those of rings since then. */
static int taken(int number, int id, clockid_t clock, int value, int *signals) {
	double since = now(clock);
	siginfo_t info;
	sigset_t set;
	int rung = 0;
	sigemptyset(&set);
	sigaddset(&set, number);
	for (*signals = 0; sigtimedwait(&set, &info, &(struct timespec){0, 0}) == number; ++*signals) {
		expect(info.si_code == SI_TIMER && info.si_value.sival_int == value && info.si_timerid == id, "another signal");
		int overrun = syscall(SYS_timer_getoverrun, id);
		same("si_overrun", overrun, info.si_overrun);
		rung += 1 + info.si_overrun;
	}
	for (int later = rings(id, clock, since); later > 0 && *signals > 1; later--)
		--*signals;
	return rung;
}

/* All that it has rung by its clock is there, but for some; who is held may have been held for a while. */
static void all_there(const char *what, clockid_t clock, double since, int rung) {
	double wanted = (now(clock) - since) * 1000 / EACH_MS;
	expect(rung > wanted - 6 && rung < wanted + 2, "%s has rung %d times, not %.1f", what, rung, wanted);
}

static void *in_thread(__attribute__((unused)) void *nothing) {
	int signals;
	thread = gettid();
	wait_for("check");
	int rung = taken(SIGRTMIN + 3, of_thread, CLOCK_BOOTTIME, 98, &signals);
	all_there("that of a thread", CLOCK_BOOTTIME, began, rung);
	same("signals of it", 1, signals);
	return NULL;
}

int main(void) {
	pthread_t other;
	sigset_t blocked;
	int signals;
	sigfillset(&blocked);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	pthread_create(&other, NULL, in_thread, NULL);
	while (!thread)
		sched_yield();
	of_process = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 2, 99);
	of_thread = create(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 3, 98);
	once = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 97);
	beside = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 5, 96);
	must(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 95}));
	began = now(CLOCK_BOOTTIME);
	double since = now(CLOCK_MONOTONIC);
	start(of_process, true), start(of_thread, true), start(once, false), start(beside, true);
	nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
	freeze_here();
	spoil(start(of_process, false););
	all_there("that of the process", CLOCK_MONOTONIC, since, taken(SIGRTMIN + 2, of_process, CLOCK_MONOTONIC, 99, &signals));
	same("signals of it", 1, signals);
	since = now(CLOCK_MONOTONIC);
	nanosleep(&(struct timespec){.tv_nsec = 20 * EACH_MS * 1000000}, NULL);
	all_there("what goes on", CLOCK_MONOTONIC, since, taken(SIGRTMIN + 2, of_process, CLOCK_MONOTONIC, 99, &signals));
	same("what rings once", 1, taken(SIGRTMIN + 4, once, CLOCK_MONOTONIC, 97, &signals));
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	expect(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == SIGRTMIN + 5 && info.si_value.sival_int == 95, "another first");
	expect(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == SIGRTMIN + 5 && info.si_timerid == beside, "another second");
	pthread_join(other, NULL);
	return report();
}

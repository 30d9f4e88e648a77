/* POSIX timers that belong to threads: of their CPU time, of another's, of another process's; that signal one which has ended. */
#include "wait.h"

enum { THREADS = 3 };
static volatile int ids[THREADS], of_others[THREADS], made, burn = -1, burnt = -1;

static int create(clockid_t clock, int notify, int value, int tid) {
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = value};
	int id = -1;
	event._sigev_un._tid = tid;
	must(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static void set(int id, long nanoseconds) { must(syscall(SYS_timer_settime, id, 0, &(struct itimerspec){{0, 0}, {0, nanoseconds}}, NULL)); }

static void work(void) {
	for (double end = now(CLOCK_THREAD_CPUTIME_ID) + 0.1; now(CLOCK_THREAD_CPUTIME_ID) < end;) {}
}

static void *lives(void *number) {
	int me = (long)number;
	ids[me] = create(CLOCK_THREAD_CPUTIME_ID, SIGEV_THREAD_ID, me, gettid());
	made++;
	while (burnt != me) {
		if (burn == me) {
			set(ids[me], 20000000);
			work();
			siginfo_t info = {0};
			sigset_t all;
			sigfillset(&all);
			same("a timer's signal", SIGRTMIN, sigtimedwait(&all, &info, &(struct timespec){0}));
			same("which timer", me, info.si_value.sival_int);
			burnt = me;
		}
		usleep(1000);
	}
	return NULL;
}

static void *ends(__attribute__((unused)) void *nothing) { return (void *)(long)create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, 9, gettid()); }

int main(void) {
	sigset_t all;
	siginfo_t info = {0};
	struct itimerspec left;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	pthread_t threads[THREADS], ended;
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("burn");
		work();
		wait_for("leave");
		_exit(0);
	}
	void *to_nobody;
	must(pthread_create(&ended, NULL, ends, NULL));
	pthread_join(ended, &to_nobody);
	for (long i = 0; i < THREADS; i++) {
		must(pthread_create(&threads[i], NULL, lives, (void *)i));
		while (made <= i)
			usleep(1000);
	}
	clockid_t clock;
	must(clock_getcpuclockid(child, &clock));
	int of_child = create(clock, SIGEV_SIGNAL, 20, 0);
	pthread_getcpuclockid(threads[1], &clock);
	int of_thread = create(clock, SIGEV_SIGNAL, 21, 0);
	set(of_child, 30000000);
	set((long)to_nobody, 1000);

	freeze_here();
	spoil(syscall(SYS_timer_delete, of_child););

	say("burn");
	same("the timer of another process's time", SIGRTMIN, sigtimedwait(&all, &info, &(struct timespec){5, 0}));
	same("its value", 20, info.si_value.sival_int);
	must(syscall(SYS_timer_gettime, of_thread, &left));
	set(of_thread, 50000000);
	set((long)to_nobody, 1000);
	for (int i = 0; i < THREADS; i++) {
		burn = i;
		while (burnt != i)
			usleep(1000);
		pthread_join(threads[i], NULL);
		if (i == 1) {
			same("the timer of another thread's time", SIGRTMIN, sigtimedwait(&all, &info, &(struct timespec){5, 0}));
			same("its value", 21, info.si_value.sival_int);
		}
	}
	same("a signal to nobody", -1, sigtimedwait(&all, &info, &(struct timespec){0}));
	say("leave");
	join(child);
	return report();
}

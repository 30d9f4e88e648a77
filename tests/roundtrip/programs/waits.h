/* Children that each sit in one interrupted call. Arguments choose some of them by name. */
#pragma once
#include "wait.h"

struct wait {
	const char *name;
	long (*call)(void);      /* made by the child; its result or its -errno */
	long result;             /* what it should be */
	void (*wake)(pid_t);     /* done by the parent when the freeze is over */
};

#define RAW(...) ({ long got_ = syscall(__VA_ARGS__); got_ == -1 ? -errno : got_; })
#define WAITS(table) table, sizeof table / sizeof *table, count, arguments

static double start;

/* How late something may be: what a wait's timeout is guessed at, how long we were ready to run but did not (/proc/PID/schedstat), and what it
 * took to be set back, which is nobody's time. */
static inline double leeway(void) {
	double waited = 0, late = 0;
	FILE *file = fopen("/proc/self/schedstat", "r");
	if (file) {
		expect(fscanf(file, "%*s %lf", &waited) == 1, "nothing is told of the time that it didn't run");
		fclose(file);
	}
	if ((file = fopen("/work/late", "r"))) {
		expect(fscanf(file, "%lf", &late) == 1, "nothing is told of how late it is");
		fclose(file);
	}
	return 0.6 + waited / 1e9 + late;
}

static inline bool chosen(const char *name, int count, char **arguments) {
	for (int i = 1; i < count; i++)
		if (!strcmp(arguments[i], name))
			return true;
	return count == 1;
}

/* Make every call in a child of its own, freeze, wake them; `seconds` is how long a call takes by itself. */
static inline int all_of(const struct wait *waits, int size, int count, char **arguments, double seconds) {
	pid_t children[64] = {0};
	for (int i = 0; i < size; i++) {
		if (!chosen(waits[i].name, count, arguments) || (children[i] = must(fork())))
			continue;
		sigset_t before, after;
		pthread_sigmask(SIG_SETMASK, NULL, &before);
		start = now(CLOCK_MONOTONIC);
		long result = waits[i].call();
		double took = now(CLOCK_MONOTONIC) - start;
		spoil(result = -EINTR;);
		expect(result == waits[i].result, "%s: gives %ld (%s), not %ld", waits[i].name, result, result < 0 ? strerror(-result) : "", waits[i].result);
		pthread_sigmask(SIG_SETMASK, NULL, &after);
		expect(!memcmp(&before, &after, 8), "%s: another signal mask", waits[i].name);
		expect(took >= seconds - 0.01, "%s: only %f s", waits[i].name, took);
		expect(seconds == 0 || took < seconds + leeway(), "%s: even %f s", waits[i].name, took);
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	freeze_here();
	for (int i = 0; i < size; i++) {
		if (!children[i])
			continue;
		if (waits[i].wake) {
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
			expect(waitpid(children[i], NULL, WNOHANG) == 0, "%s: didn't wait", waits[i].name);
			waits[i].wake(children[i]);
		}
		join(children[i]);
	}
	return report();
}

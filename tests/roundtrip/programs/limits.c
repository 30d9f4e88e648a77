/* Resource limits, soft and hard, of two processes. */
#include "wait.h"
#include <sys/resource.h>

static void check(void) {
	struct rlimit was[RLIM_NLIMITS], is;
	for (int i = 0; i < RLIM_NLIMITS; i++)
		must(getrlimit(i, &was[i]));
	wait_for("check");
	spoil(must(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0})););
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		must(getrlimit(i, &is));
		expect(is.rlim_cur == was[i].rlim_cur && is.rlim_max == was[i].rlim_max, "limit %d: was %ld %ld, is %ld %ld",
			i, was[i].rlim_cur, was[i].rlim_max, is.rlim_cur, is.rlim_max);
	}
}

int main(void) {
	must(setrlimit(RLIMIT_CORE, &(struct rlimit){4096, 8192}));
	pid_t child = must(fork());
	if (child == 0) {
		must(setrlimit(RLIMIT_NOFILE, &(struct rlimit){5, 5})); /* fewer than a restore may want */
		must(setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, 2000}));
		must(setrlimit(RLIMIT_AS, &(struct rlimit){16 << 20, 32 << 20}));
		must(setrlimit(RLIMIT_NPROC, &(struct rlimit){1, 1}));
		must(setrlimit(RLIMIT_STACK, &(struct rlimit){1 << 20, 2 << 20}));
		must(setrlimit(RLIMIT_DATA, &(struct rlimit){1 << 20, 1 << 20}));
		must(setrlimit(RLIMIT_CPU, &(struct rlimit){600, 700}));
		must(setrlimit(RLIMIT_SIGPENDING, &(struct rlimit){3, 4}));
		must(setrlimit(RLIMIT_MSGQUEUE, &(struct rlimit){0, 0}));
		must(setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){0, 0}));
		check();
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	check();
	join(child);
	return report();
}

/* Policy, priority, nice, affinity, I/O priority and timer slack of each thread. */
// capabilities: CAP_SYS_NICE
#include "wait.h"
#include <sys/prctl.h>
#include <sys/resource.h>

struct attributes { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t times[3]; };
struct wish { struct attributes attributes; int io, cpu, slack; };

static struct wish wishes[] = {
	{{.policy = SCHED_OTHER, .nice = 7}, 2 << 13 | 3, 0, 12345},
	{{.policy = SCHED_BATCH, .nice = -3}, 3 << 13, 1, 0},
	{{.policy = SCHED_IDLE, .nice = 4}, 0, 0, 0},
	{{.policy = SCHED_OTHER, .times = {7000000}} /* its slice, since Linux 6.12 */, 0, 0, 0},
	{{.policy = SCHED_OTHER, .flags = 1 /* reset on fork */}, 1 << 13 | 2, 0, 0},
	{{.policy = SCHED_FIFO, .priority = 3}, 0, -1, 0},
	{{.policy = SCHED_RR, .priority = 5}, 0, -1, 0},
	{{.policy = 6 /* SCHED_DEADLINE */, .times = {2000000, 90000000, 100000000}}, 0, -1, 0}, /* must be free to run on all */
};
enum { THREADS = sizeof wishes / sizeof *wishes };

static void *thread(void *argument) {
	struct wish *wish = argument;
	struct attributes after = {0};
	cpu_set_t set, set_after;
	wish->attributes.size = sizeof after;
	CPU_ZERO(&set);
	if (wish->cpu < 0)
		must(sched_getaffinity(0, sizeof set, &set));
	else
		CPU_SET(wish->cpu % sysconf(_SC_NPROCESSORS_ONLN), &set);
	must(sched_setaffinity(0, sizeof set, &set));
	if (wish->attributes.nice)
		must(setpriority(PRIO_PROCESS, 0, wish->attributes.nice));
	if (syscall(SYS_sched_setattr, 0, &wish->attributes, 0) != 0) {
		/* cgroups may have no time for such threads */
		expect(errno == EPERM && wish->cpu < 0 && wish->attributes.policy != 6, "no policy %d: %s", wish->attributes.policy, strerror(errno));
		wish->attributes = (struct attributes){.size = sizeof after};
	}
	must(syscall(SYS_ioprio_set, 1, 0, wish->io));
	if (wish->slack)
		must(prctl(PR_SET_TIMERSLACK, wish->slack));
	int nice = getpriority(PRIO_PROCESS, 0);
	struct attributes set_to;
	must(syscall(SYS_sched_getattr, 0, &set_to, sizeof set_to, 0));
	int slack = prctl(PR_GET_TIMERSLACK);
	wait_for("check");
	spoil(setpriority(PRIO_PROCESS, 0, 9); syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7););
	must(syscall(SYS_sched_getattr, 0, &after, sizeof after, 0));
	must(sched_getaffinity(0, sizeof set_after, &set_after));
	same("policy", wish->attributes.policy, after.policy);
	same("nice", nice, getpriority(PRIO_PROCESS, 0));
	same("slice", set_to.times[0], after.times[0]);
	same("priority", wish->attributes.priority, after.priority);
	same("flags", wish->attributes.flags, after.flags);
	for (int i = 0; wish->attributes.policy == 6 && i < 3; i++)
		same("a time of SCHED_DEADLINE", wish->attributes.times[i], after.times[i]);
	same("I/O priority", wish->io, syscall(SYS_ioprio_get, 1, 0));
	same("timer slack", slack, prctl(PR_GET_TIMERSLACK));
	expect(CPU_EQUAL(&set, &set_after), "another affinity");
	return NULL;
}

int main(void) {
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, thread, &wishes[i]);
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	freeze_here();
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return report();
}

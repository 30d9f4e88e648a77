/* Restartable sequences: the kernel goes on telling each thread, in its own memory, on which CPU it runs. */
#include "wait.h"
#include <sys/rseq.h>

static volatile struct rseq *mine(void) { return (void *)((char *)__builtin_thread_pointer() + __rseq_offset); }

static void look(const char *who) {
	cpu_set_t all, one;
	must(sched_getaffinity(0, sizeof all, &all));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		must(sched_setaffinity(0, sizeof one, &one));
		same(who, cpu, mine()->cpu_id);
	}
	must(sched_setaffinity(0, sizeof all, &all));
}

static void *thread(void *name) {
	look("a thread's rseq before");
	wait_for("check");
	look(name);
	/* It is still registered: a second registration is EBUSY, or EINVAL of another length. */
	expect(syscall(SYS_rseq, mine(), 32, 0, RSEQ_SIG) == -1 && errno != EPERM, "not registered");
	return NULL;
}

int main(void) {
	pthread_t other;
	if (__rseq_size == 0)
		differs("line 0: this libc has no rseq");
	look("main's rseq before");
	pthread_create(&other, NULL, thread, "a thread's rseq");
	freeze_here();
	spoil(must(syscall(SYS_rseq, mine(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG)););
	look("main's rseq");
	pthread_join(other, NULL);
	return report();
}

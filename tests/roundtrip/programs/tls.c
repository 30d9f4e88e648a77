/* Thread-local memory: FS and GS bases, of several threads. */
#include "wait.h"
#include <asm/prctl.h>

static __thread long mine = 1;
static long others[8];

static void *thread(void *number) {
	unsigned long fs, gs, fs_after, gs_after;
	mine = (long)number * 1000003;
	must(syscall(SYS_arch_prctl, ARCH_SET_GS, &others[(long)number]));
	must(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
	must(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
	others[(long)number] = (long)number + 77;
	pthread_t self = pthread_self();
	wait_for("check");
	spoil(mine++; syscall(SYS_arch_prctl, ARCH_SET_GS, others););
	must(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs_after));
	must(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_after));
	same("FS base", fs, fs_after);
	same("GS base", gs, gs_after);
	same("a thread-local variable", (long)number * 1000003, mine);
	expect(self == pthread_self(), "another pthread_self");
	long through_gs;
	asm volatile("mov %%gs:0, %0" : "=r"(through_gs));
	same("what GS points at", (long)number + 77, through_gs);
	return NULL;
}

int main(void) {
	pthread_t threads[7];
	for (long i = 0; i < 7; i++)
		pthread_create(&threads[i], NULL, thread, (void *)(i + 1));
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	for (int i = 0; i < 7; i++)
		pthread_join(threads[i], NULL);
	return report();
}

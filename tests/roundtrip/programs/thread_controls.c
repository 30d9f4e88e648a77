/* What each thread asked of its CPU and memory: time stamp counter and CPUID as faults, speculation, a NUMA policy. */
#include "wait.h"
#include <asm/prctl.h>
#include <linux/mempolicy.h>
#include <setjmp.h>
#include <sys/prctl.h>

static __thread sigjmp_buf back;

static void handler(int number) { siglongjmp(back, number); }

static bool counter_faults(void) { return sigsetjmp(back, 1) ? true : (__builtin_ia32_rdtsc(), false); }
static bool cpuid_faults(void) {
	unsigned a = 0, b, c = 0, d;
	if (sigsetjmp(back, 1))
		return true;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return false;
}

static void *thread(__attribute__((unused)) void *nothing) {
	unsigned long nodes = 1, found = 0;
	int mode;
	long speculation[3];
	must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	bool no_cpuid = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0;
	for (int i = 0; i < 3; i++) {
		prctl(PR_SET_SPECULATION_CTRL, i, PR_SPEC_DISABLE, 0, 0);
		speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
	}
	must(syscall(SYS_set_mempolicy, MPOL_PREFERRED | MPOL_F_STATIC_NODES, &nodes, 8ul));
	say("set");
	wait_for("check");
	spoil(prctl(PR_SET_TSC, PR_TSC_ENABLE););
	expect(counter_faults(), "the time stamp counter can be read");
	same("CPUID faults", no_cpuid, cpuid_faults());
	for (int i = 0; i < 3; i++)
		same("speculation", speculation[i], prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0));
	must(syscall(SYS_get_mempolicy, &mode, &found, 64ul, 0, 0));
	same("policy", MPOL_PREFERRED | MPOL_F_STATIC_NODES, mode);
	same("nodes", nodes, found);
	return NULL;
}

int main(void) {
	signal(SIGSEGV, handler);
	pthread_t other;
	must(pthread_create(&other, NULL, thread, NULL));
	wait_for("set");
	freeze_here();
	pthread_join(other, NULL);
	expect(!counter_faults() && !cpuid_faults(), "the first thread's faults");
	int mode = -1;
	must(syscall(SYS_get_mempolicy, &mode, NULL, 0ul, 0, 0));
	same("the first thread's policy", MPOL_DEFAULT, mode);
	return report();
}

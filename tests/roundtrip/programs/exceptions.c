/* Flags and registers that make exceptions: a thread that steps itself (TF), one that may not be unaligned (AC), an x87 exception that is
 * unmasked and yet to come, and MXCSR with exceptions unmasked. */
// after: 0.05
#include "wait.h"
#include <ucontext.h>

enum { TRAP = 1 << 8, DIRECTION = 1 << 10, ALIGNED = 1 << 18 };

static volatile long steps, told;
static volatile int stop, go;

static void on_trap(__attribute__((unused)) int number, __attribute__((unused)) siginfo_t *info, void *context) {
	steps++;
	if (stop)
		((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP;
}

static void on_exception(__attribute__((unused)) int number, siginfo_t *info, void *context) {
	told = info->si_code;
	((ucontext_t *)context)->uc_mcontext.fpregs->swd &= ~0x80ff;
	((ucontext_t *)context)->uc_mcontext.fpregs->cwd |= 0x3f;
}

static void *steps_itself(__attribute__((unused)) void *nothing) {
	asm volatile("pushf; orl %0, (%%rsp); popf" : : "i"(TRAP) : "memory", "cc");
	while (!stop)
		asm volatile("nop");
	asm volatile("nop; nop");
	return NULL;
}

static void *has_flags(__attribute__((unused)) void *nothing) {
	uint64_t flags;
	asm volatile("pushf; orl %2, (%%rsp); popf; 1: pause; cmpl $0, %1; je 1b; pushf; pop %0; pushf; andl $~%c2, (%%rsp); popf"
		: "=r"(flags) : "m"(go), "i"(ALIGNED | DIRECTION) : "memory", "cc");
	same("flags", ALIGNED | DIRECTION, flags & (ALIGNED | DIRECTION));
	return NULL;
}

static void *divides(__attribute__((unused)) void *nothing) {
	uint16_t control = 0x37f & ~4;
	double one = 1, zero = 0;
	asm volatile("fninit; fldcw %0; fldl %1; fldl %2; fdivrp; 1: pause; cmpl $0, %3; je 1b; fwait; nop; fninit" : : "m"(control), "m"(one), "m"(zero), "m"(go));
	same("si_code of the division", FPE_FLTDIV, told);
	return NULL;
}

static void *has_mxcsr(__attribute__((unused)) void *nothing) {
	uint32_t usual = 0x1f80, set = (usual & ~0x200) | 0x8040 /* to zero, both ways */, is;
	asm volatile("ldmxcsr %1; 1: pause; cmpl $0, %2; je 1b; stmxcsr %0; ldmxcsr %3" : "=m"(is) : "m"(set), "m"(go), "m"(usual));
	same("MXCSR", set, is);
	return NULL;
}

int main(void) {
	void *(*const all[])(void *) = {steps_itself, has_flags, divides, has_mxcsr};
	pthread_t threads[4];
	/* So that its mask is the same wherever it is frozen. */
	struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
	sigaction(SIGTRAP, &action, NULL);
	action.sa_sigaction = on_exception;
	sigaction(SIGFPE, &action, NULL);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, all[i], NULL);
	freeze_here();
	spoil(stop = 1; while (pthread_tryjoin_np(threads[0], NULL)) {});
	long before = steps;
	for (double end = now(CLOCK_MONOTONIC) + 30; steps == before && now(CLOCK_MONOTONIC) < end;)
		usleep(1000);
	expect(steps > before, "no steps any more after %ld", before);
	stop = go = 1;
	for (int i = 0; i < 4; i++)
		if (stop < 2 spoil(&& i))
			pthread_join(threads[i], NULL);
	return report();
}

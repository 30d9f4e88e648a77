/* The action of every signal: handler, flags, mask and restorer. */
#include "wait.h"

struct kernel_action { void *handler; unsigned long flags; void *restorer; uint64_t mask; };

static volatile int count;

static void handler(__attribute__((unused)) int number) { count++; }

static long rt_sigaction(int number, const struct kernel_action *new, struct kernel_action *old) {
	return syscall(SYS_rt_sigaction, number, new, old, 8);
}

int main(void) {
	static const unsigned long flags[] = {SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_NOCLDSTOP, SA_NOCLDWAIT, 0x800 /* SA_EXPOSE_TAGBITS */, 0};
	struct kernel_action was[65], is, libc;
	signal(SIGUSR1, handler);
	must(rt_sigaction(SIGUSR1, NULL, &libc)); /* for its restorer */
	for (int number = 1; number <= 64; number++) {
		if (number == SIGKILL || number == SIGSTOP || number == 32 || number == 33)
			continue;
		struct kernel_action action = {number % 3 ? handler : (void *)(long)(number % 2),
			0x4000000 /* SA_RESTORER */ | flags[number % 7], libc.restorer, 0x0123456789abcdefu * number & ~0x40100ul};
		must(rt_sigaction(number, &action, NULL));
		must(rt_sigaction(number, NULL, &was[number]));
	}
	freeze_here();
	spoil(was[20].mask ^= 4; was[33].flags = 1; was[50].handler = 0;);
	for (int number = 1; number <= 64; number++) {
		if (number == SIGKILL || number == SIGSTOP || number == 32 || number == 33)
			continue;
		must(rt_sigaction(number, NULL, &is));
		expect(was[number].handler == is.handler, "signal %d: handler %p is %p", number, was[number].handler, is.handler);
		expect(was[number].flags == is.flags, "signal %d: flags %#lx are %#lx", number, was[number].flags, is.flags);
		expect(was[number].mask == is.mask, "signal %d: mask %#lx is %#lx", number, was[number].mask, is.mask);
		expect(was[number].restorer == is.restorer, "signal %d: another restorer", number);
	}
	raise(SIGUSR1);
	same("calls of the handler", 1, count);
	return report();
}

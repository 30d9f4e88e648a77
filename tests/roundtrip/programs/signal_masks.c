/* Signal masks and alternate stacks of each thread; one is frozen inside a handler, on its alternate stack. */
#include "wait.h"

static char stacks[2][65536] __attribute__((aligned(4096)));

static void handler(int number) {
	stack_t stack, again;
	sigset_t mask, mask_after;
	must(sigaltstack(NULL, &stack));
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	if (number == SIGUSR1)
		wait_for("check");
	spoil(sigaddset(&mask, SIGHUP); pthread_sigmask(SIG_SETMASK, &mask, NULL); sigdelset(&mask, SIGHUP););
	must(sigaltstack(NULL, &again));
	pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
	same("in a handler: ss_flags", SS_ONSTACK, again.ss_flags);
	same("in a handler: ss_sp", stack.ss_sp, again.ss_sp);
	expect(memcmp(&mask, &mask_after, 8) == 0, "in a handler: another mask");
	expect(sigismember(&mask_after, number) == 1, "in a handler: its signal isn't masked");
}

static void *thread(void *number) {
	stack_t stack = {.ss_sp = stacks[(long)number], .ss_size = 60000 + 100 * (long)number}, after;
	sigset_t mask, mask_after;
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + (long)number);
	sigaddset(&mask, SIGCHLD);
	must(sigaltstack(&stack, NULL));
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	if (number)
		raise(SIGUSR1); /* the freeze finds this thread in its handler */
	wait_for("check");
	raise(SIGUSR2);
	must(sigaltstack(NULL, &after));
	pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
	expect(memcmp(&mask, &mask_after, 8) == 0, "thread %ld: another mask", (long)number);
	same("ss_sp", stack.ss_sp, after.ss_sp);
	same("ss_size", stack.ss_size, after.ss_size);
	same("ss_flags", 0, after.ss_flags);
	return NULL;
}

int main(void) {
	pthread_t threads[2];
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	sigaddset(&action.sa_mask, SIGWINCH);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	for (long i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, thread, (void *)i);
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	return report();
}

/* Handlers on alternate signal stacks, of the first thread and of another: Go's programs are found in such at any time. */
#include "wait.h"
#include <pthread.h>

static char stacks[2][65536];
static volatile int handled;

static int is_on(const char *stack) {
	char here;
	return &here >= stack && &here < stack + sizeof stacks[0];
}

static void look(const char *stack, const char *whose) {
	stack_t now;
	must(sigaltstack(NULL, &now));
	expect(now.ss_sp == stack && now.ss_size == sizeof stacks[0], "%s has another stack", whose);
	expect(now.ss_flags & SS_ONSTACK && is_on(stack), "%s is not on its stack any more", whose);
	handled++;
}

static void in_first(int signal) {
	(void)signal;
	freeze_here();
	spoil(handled++;);
	look(stacks[0], "the first thread");
}

static void in_other(int signal) {
	(void)signal;
	say("other");
	wait_for("look");
	look(stacks[1], "the other thread");
}

static void on_stack(char *stack, int signal, void (*handler)(int)) {
	must(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stacks[0]}, NULL));
	must(sigaction(signal, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_ONSTACK}, NULL));
}

static void *other(void *unused) {
	on_stack(stacks[1], SIGUSR2, in_other);
	must(raise(SIGUSR2));
	expect(!is_on(stacks[1]), "the other thread is still on its stack");
	return unused;
}

int main(void) {
	pthread_t thread;
	expect(!pthread_create(&thread, NULL, other, NULL), "no thread");
	wait_for("other");
	on_stack(stacks[0], SIGUSR1, in_first);
	must(raise(SIGUSR1));
	expect(!is_on(stacks[0]), "the first thread is still on its stack");
	say("look");
	pthread_join(thread, NULL);
	same("the handlers that came to their ends", 2, handled);
	return report();
}

/* Every general register of a thread that is in a loop, outside and inside of calls. */
// arguments: loop | call
#include "wait.h"

volatile int begun, go;
uint64_t before[14], after[14];

/* Fill all registers but rsp, spin (or sleep) until `go`, store them all. rcx and r11 are the call's own. */
__attribute__((naked)) static void hold(__attribute__((unused)) long sleeps) {
	asm("push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi; push $10000000; push $0;"
	    "lea before(%rip), %rax; mov (%rax), %rbx; mov 8(%rax), %rbp; mov 16(%rax), %r12; mov 24(%rax), %r13;"
	    "mov 32(%rax), %r14; mov 40(%rax), %r15; mov 48(%rax), %rdx; mov 56(%rax), %r8; mov 64(%rax), %r9;"
	    "mov 72(%rax), %r10; mov 80(%rax), %rcx; mov 88(%rax), %r11;"
	    "mov 96(%rax), %rsi; mov 104(%rax), %rdi;"
	    "movl $1, begun(%rip);" /* only now: the pushes may have touched a page of the stack first */
	    "1: cmpl $0, 16(%rsp); je 2f;"
	    "mov %rsp, %rdi; xor %esi, %esi; mov $35, %eax; syscall;" /* nanosleep(rsp, NULL) */
	    "lea before(%rip), %rax; mov 80(%rax), %rcx; mov 88(%rax), %r11; mov 96(%rax), %rsi; mov 104(%rax), %rdi;"
	    "2: pause; cmpl $0, go(%rip); je 1b;"
	    "lea after(%rip), %rax; mov %rbx, (%rax); mov %rbp, 8(%rax); mov %r12, 16(%rax); mov %r13, 24(%rax);"
	    "mov %r14, 32(%rax); mov %r15, 40(%rax); mov %rdx, 48(%rax); mov %r8, 56(%rax); mov %r9, 64(%rax);"
	    "mov %r10, 72(%rax); mov %rcx, 80(%rax); mov %r11, 88(%rax); mov %rsi, 96(%rax); mov %rdi, 104(%rax);"
	    "add $16, %rsp; pop %rdi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret");
}

static void *thread(void *sleeps) {
	hold((long)sleeps);
	return NULL;
}

int main(int count, char **arguments) {
	pthread_t held;
	fill(before, sizeof before, 4711);
	pthread_create(&held, NULL, thread, (void *)(long)(count > 1 && arguments[1][0] == 'c'));
	while (!begun)
		usleep(1000);
	freeze_here();
	go = 1;
	pthread_join(held, NULL);
	spoil(after[3]++;);
	const char *names[] = {"rbx", "rbp", "r12", "r13", "r14", "r15", "rdx", "r8", "r9", "r10", "rcx", "r11", "rsi", "rdi"};
	for (int i = 0; i < 14; i++)
		same(names[i], before[i], after[i]);
	return report();
}

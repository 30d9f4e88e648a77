/* A thread's end clears its tid and wakes who waits; new threads can be made. */
#include "wait.h"

static pthread_t first;

static void *quick(void *value) { return value; }

static void *waits(void *value) {
	wait_for("check");
	return value;
}

static void *last(__attribute__((unused)) void *nothing) {
	void *value = NULL;
	wait_for("check");
	pthread_join(first, &value);
	spoil(value = NULL;);
	same("a joined thread's value", 77, value);
	pthread_t more;
	same("making a new thread", 0, pthread_create(&more, NULL, quick, (void *)78));
	pthread_join(more, &value);
	same("a new thread's value", 78, value);
	exit(report());
}

int main(void) {
	pthread_t other;
	pthread_create(&first, NULL, waits, (void *)77);
	pthread_create(&other, NULL, last, NULL);
	void *value;
	freeze_here();
	pthread_join(other, &value);
	return 2; /* it has ended the process */
}

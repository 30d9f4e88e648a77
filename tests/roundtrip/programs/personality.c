/* The personality, which each thread has for itself: inherited, changed since, and a child's. */
#include "wait.h"
#include <sys/personality.h>

static void *thread(void *own) {
	if (own)
		must(personality((long)own));
	long was = must(personality(-1));
	say(own ? "own" : "inherited");
	wait_for("check");
	spoil(personality(0););
	same(own ? "a thread's own" : "a thread's, inherited", was, personality(-1));
	return NULL;
}

int main(void) {
	pthread_t inherits, has_own, is_plain;
	pthread_create(&is_plain, NULL, thread, NULL);
	wait_for("inherited");
	must(unlink(in_work("inherited")));
	must(personality(ADDR_NO_RANDOMIZE | UNAME26));
	pthread_create(&inherits, NULL, thread, NULL);
	wait_for("inherited");
	pthread_create(&has_own, NULL, thread, (void *)(long)(READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE));
	wait_for("own");
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		same("a child's", ADDR_NO_RANDOMIZE | UNAME26, personality(-1));
		_exit(0);
	}
	freeze_here();
	spoil(personality(ADDR_NO_RANDOMIZE););
	same("the first thread's", ADDR_NO_RANDOMIZE | UNAME26, personality(-1));
	pthread_join(is_plain, NULL);
	pthread_join(inherits, NULL);
	pthread_join(has_own, NULL);
	join(child);
	return report();
}

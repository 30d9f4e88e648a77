/* A thread's end clears its tid and wakes who waits; new threads can be made; a dead main thread leaves the others alive. */
#include "wait.h"

static pthread_t main_thread, first;

static void *quick(void *value) { return value; }

static void *waits(void *value) {
	wait_for("check");
	return value;
}

static void *last(__attribute__((unused)) void *nothing) {
	void *value = NULL;
	wait_for("check"); /* by now the first thread of this process is a zombie */
	pthread_join(first, &value);
	spoil(value = NULL;);
	same("a joined thread's value", 77, value);
	pthread_t more;
	same("making a new thread", 0, pthread_create(&more, NULL, quick, (void *)78));
	pthread_join(more, &value);
	same("a new thread's value", 78, value);
	same("joining the dead main thread", 0, pthread_join(main_thread, NULL));
	exit(report());
}

int main(void) {
	pthread_t other;
	main_thread = pthread_self();
	pthread_create(&first, NULL, waits, (void *)77);
	pthread_create(&other, NULL, last, NULL);
	pid_t child = must(fork()); /* says `ready` when our main thread has ended */
	if (child == 0) {
		char state[64], path[64];
		snprintf(path, sizeof path, "/proc/%d/stat", getppid());
		do {
			int stat = must(open(path, O_RDONLY));
			expect(read(stat, state, sizeof state) > 0, "no stat");
			close(stat);
		} while (!strstr(state, ") Z"));
		say("ready");
		_exit(0);
	}
	pthread_exit(NULL);
}

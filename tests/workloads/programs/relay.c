/* Three runners hand on what they count by fork(2), and end, as fast as they can: none is lost or doubled. */
#include "../../roundtrip/programs/wait.h"

enum { RUNNERS = 3 };

static struct { volatile long laps[RUNNERS], arrived; volatile bool stop; } *shared;

static void run(int runner) {
	for (long lap = 0; !shared->stop; lap++) {
		same("laps of a runner", lap, __atomic_fetch_add(&shared->laps[runner], 1, __ATOMIC_SEQ_CST));
		if (must(fork()))
			_exit(0);
	}
	__atomic_add_fetch(&shared->arrived, 1, __ATOMIC_SEQ_CST);
	_exit(0);
}

int main(void) {
	shared = must(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	signal(SIGCHLD, SIG_IGN);
	for (int runner = 0; runner < RUNNERS; runner++)
		if (must(fork()) == 0)
			run(runner);
	freeze_here();
	shared->stop = true;
	for (double end = now(CLOCK_MONOTONIC) + 10; shared->arrived < RUNNERS && now(CLOCK_MONOTONIC) < end;)
		usleep(1000);
	same("runners", RUNNERS, shared->arrived);
	return report();
}

/* Fifty processes and two hundred threads in several sessions; each looks after itself, and works. */
#include "../../roundtrip/programs/wait.h"
#include <sys/prctl.h>

enum { PROCESSES = 50, THREADS = 4 };

static struct { volatile long born, work[PROCESSES][THREADS]; } *shared;
static __thread long mine;

struct place { int process, thread; };

static void identify(long into[8]) {
	char name[16] = "";
	prctl(PR_GET_NAME, name);
	long found[] = {getpid(), gettid(), getppid(), getpgrp(), getsid(0), sched_getscheduler(0), mine, *(long *)name};
	memcpy(into, found, sizeof found);
}

static void *work(void *argument) {
	struct place place = *(struct place *)argument;
	char name[16];
	long before[8], after[8];
	uint64_t state = place.process * THREADS + place.thread + 1;
	snprintf(name, sizeof name, "tree %d.%d", place.process, place.thread);
	prctl(PR_SET_NAME, name);
	mine = state;
	identify(before);
	__atomic_add_fetch(&shared->born, 1, __ATOMIC_SEQ_CST);
	while (access(in_work("check"), F_OK) != 0) {
		for (int i = 0; i < 100; i++)
			state = state * 6364136223846793005u + 1442695040888963407u;
		shared->work[place.process][place.thread]++;
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	identify(after);
	for (int i = 0; i < 8; i++)
		same(name, before[i], after[i]);
	uint64_t again = place.process * THREADS + place.thread + 1;
	for (long i = shared->work[place.process][place.thread] * 100; i; i--)
		again = again * 6364136223846793005u + 1442695040888963407u;
	expect(again == state, "%s: its work came out otherwise", name);
	return NULL;
}

/* Process n has the children 2n+1 and 2n+2; every seventh leads a session, every third a group. */
static void live(int number) {
	pthread_t threads[THREADS];
	struct place places[THREADS];
	pid_t children[2] = {0};
	if (number && number % 7 == 0)
		must(setsid());
	else if (number % 3 == 0)
		setpgid(0, 0);
	for (int i = 0; i < 2; i++)
		if (2 * number + 1 + i < PROCESSES && (children[i] = must(fork())) == 0) {
			live(2 * number + 1 + i);
			while (access(in_work("out"), F_OK) != 0) /* nobody is orphaned before all have looked */
				nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
			_exit(0);
		}
	for (int i = 0; i < THREADS; i++) {
		places[i] = (struct place){number, i};
		pthread_create(&threads[i], NULL, work, &places[i]);
	}
	if (number == 0) {
		while (shared->born < PROCESSES * THREADS)
			sched_yield();
		say("ready");
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	__atomic_add_fetch(&shared->born, -THREADS, __ATOMIC_SEQ_CST);
	if (number)
		return;
	while (shared->born > 0)
		sched_yield();
	report();
	for (int i = 0; i < 2; i++)
		join(children[i]);
}

int main(void) {
	shared = must(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	live(0);
	return 0;
}

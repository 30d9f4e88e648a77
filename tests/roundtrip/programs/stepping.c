/* A thread writes the same number into every page, one after the other, looks whether it stands there, and goes on with the next;
   that fails unless a snapshot is of one moment. */
#include "wait.h"
#include <stdatomic.h>

enum { PAGES = 4096, WORDS = 4096 / sizeof(long) };

static volatile long (*pages)[WORDS];
static atomic_bool stop;

static void *step(void *unused) {
	(void)unused;
	for (long number = 1; !stop; number++) {
		for (int i = 0; i < PAGES; i++)
			pages[i][i % WORDS] = number;
		spoil(if (access(in_work("check"), F_OK) == 0) pages[PAGES / 2][PAGES / 2 % WORDS]++;);
		for (int i = 0; i < PAGES; i++)
			if (pages[i][i % WORDS] != number) {
				differs("page %d: %ld instead of %ld", i, pages[i][i % WORDS], number);
				return NULL;
			}
	}
	return NULL;
}

int main(void) {
	pages = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < PAGES; i++)
		pages[i][i % WORDS] = 0;
	pthread_t thread;
	must(pthread_create(&thread, NULL, step, NULL));
	while (!pages[PAGES - 1][(PAGES - 1) % WORDS])
		usleep(1000);

	freeze_here();
	usleep(100000);
	stop = true;
	pthread_join(thread, NULL);
	return report();
}

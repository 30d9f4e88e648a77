/* Threads that wait for completions: for one, for one that comes too late, and until a time. */
// arguments: 0 | 0x3000
// apart: 0.5
// never: set_back
#include "ring.h"

static unsigned flags;

static void *waits(void *into) {
	struct ring ring;
	make_ring(&ring, 4, flags, 0);
	struct io_uring_sqe *one = request(&ring, IORING_OP_READ, (intptr_t)into, 1);
	char byte;
	one->addr = (uintptr_t)&byte, one->len = 1;
	same("submitted", 1, enter(&ring, 1, 1));
	takes(&ring, 1, 1);
	must(enter(&ring, 0, 0));
	return NULL;
}

static void *waits_for_a_time(void *unused) {
	struct ring ring;
	(void)unused;
	make_ring(&ring, 4, flags, 0);
	struct __kernel_timespec limit = {.tv_sec = 3};
	struct io_uring_getevents_arg argument = {.ts = (uintptr_t)&limit};
	double before = now(CLOCK_MONOTONIC);
	int result = syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
	double took = now(CLOCK_MONOTONIC) - before;
	expect(result == -1 && errno == ETIME, "waited: %d, %s", result, strerror(errno));
	expect(took > 2.99 && took < 3.9, "waited %.3f s", took);
	expect(limit.tv_sec == 3 && limit.tv_nsec == 0, "the limit has changed");
	return NULL;
}

int main(int count, char **arguments) {
	int ends[2];
	pthread_t threads[2];
	(void)count;
	flags = strtoul(arguments[1], NULL, 0);
	must(pipe(ends));
	pthread_create(&threads[0], NULL, waits, (void *)(intptr_t)ends[0]);
	pthread_create(&threads[1], NULL, waits_for_a_time, NULL);
	nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
	freeze_here();
	spoil(ends[1] = dup(2););
	same("written", 1, write(ends[1], "x", 1));
	spoil(differs("spoiled"); return 1;);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	return report();
}

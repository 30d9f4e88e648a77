/* Threads with an io_uring each, that only they may use, and that they enter by a registered number, waiting for a read. */
// arguments: 0x3000 | 0x1000
#include "ring.h"

#define THREADS 4
static unsigned flags, begun;
static int ends[THREADS][2];

static void *works(void *which) {
	int me = (intptr_t)which;
	struct ring ring;
	char byte = 0;
	make_ring(&ring, 4 << me, flags, 0);
	struct io_uring_rsrc_update update = {.offset = me, .data = ring.fd};
	same("ring registered", 1, syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_RING_FDS, &update, 1));
	for (int i = 0; i < 10 * me; i++) {
		request(&ring, IORING_OP_NOP, -1, i);
		submit(&ring, 1);
		takes(&ring, i, 0);
	}
	struct io_uring_sqe *one = request(&ring, IORING_OP_READ, ends[me][0], 100 + me);
	one->addr = (uintptr_t)&byte, one->len = 1;
	submit(&ring, 1);
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	if (me == 0)
		wait_for("check"); /* the others wait in the kernel */
	while (!waiting(&ring))
		same("entered", 0, syscall(SYS_io_uring_enter, me, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0));
	takes(&ring, 100 + me, 1);
	same("the byte", 'a' + me, byte);
	return NULL;
}

int main(int count, char **arguments) {
	pthread_t threads[THREADS];
	(void)count;
	flags = strtoul(arguments[1], NULL, 0);
	for (int i = 0; i < THREADS; i++) {
		must(pipe(ends[i]));
		pthread_create(&threads[i], NULL, works, (void *)(intptr_t)i);
	}
	while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) != THREADS)
		sched_yield();
	freeze_here();
	for (int i = 0; i < THREADS; i++)
		must(write(ends[i][1], (char[]){'a' + i spoil(+ 1)}, 1));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return report();
}

/* An io_uring that polls devices (IORING_SETUP_IOPOLL), alone and with a thread of the kernel's: what is in it, and that it still polls. */
// arguments: 1 | 3 | 0x3001
#include "ring.h"

static struct ring ring;

static void give(unsigned count) {
	if (!(ring.parameters.flags & IORING_SETUP_SQPOLL))
		return submit(&ring, count);
	must(syscall(SYS_io_uring_enter, ring.fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0));
	while (__atomic_load_n(word(&ring, ring.parameters.sq_off.head), __ATOMIC_ACQUIRE) != ring.ready)
		sched_yield();
}

int main(int count, char **arguments) {
	char text[8];
	(void)count;
	int file = must(open("/proc/self/status", O_RDONLY));
	make_ring(&ring, 4, strtoul(arguments[1], NULL, 0), 0);
	for (int i = 0; i < 5; i++)
		request(&ring, IORING_OP_NOP, -1, i), give(1), takes(&ring, i, 0);
	request(&ring, IORING_OP_NOP, -1, 10), give(1);
	while (!waiting(&ring))
		must(enter(&ring, 0, 1));
	freeze_here();
	spoil(((struct io_uring_cqe *)(ring.memory + ring.parameters.cq_off.cqes))[5].res = 7;);
	same("completions", 1, waiting(&ring));
	takes(&ring, 10, 0);
	request(&ring, IORING_OP_NOP, -1, 11), give(1), takes(&ring, 11, 0);
	struct io_uring_sqe *one = request(&ring, IORING_OP_READ, file, 12);
	one->addr = (uintptr_t)text, one->len = 8;
	give(1), takes(&ring, 12, -EOPNOTSUPP); /* which nothing else than a device can do */
	return report();
}

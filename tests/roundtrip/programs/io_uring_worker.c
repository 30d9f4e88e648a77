/* An io_uring with a request that a thread of the kernel's has begun (IOSQE_ASYNC). */
#include "ring.h"

int main(void) {
	struct ring ring;
	int ends[2];
	char found = 0;
	must(pipe(ends));
	make_ring(&ring, 4, 0, 77);
	request(&ring, IORING_OP_NOP, -1, 0);
	submit(&ring, 1);
	takes(&ring, 0, 0);
	struct io_uring_sqe *one = request(&ring, IORING_OP_READ, ends[0], 1);
	one->flags = IOSQE_ASYNC, one->addr = (uintptr_t)&found, one->len = 1;
	submit(&ring, 1);

	freeze_here();
	spoil(must(write(ends[1], "y", 1)););

	must(write(ends[1], "x", 1));
	takes(&ring, 1, 1);
	same("the byte", 'x', found);
	return report();
}

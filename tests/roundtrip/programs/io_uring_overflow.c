/* An io_uring with completions for which there was no room, and a request on its way that could have none. */
// arguments: 0 | 0x3000
#include "ring.h"

int main(int count, char **arguments) {
	struct ring ring;
	(void)count;
	make_ring(&ring, 4, strtoul(arguments[1], NULL, 0), 0);
	for (int i = 0; i < 14; i++) { /* there is room for 8 */
		request(&ring, i % 3 == 2 ? IORING_OP_READ : IORING_OP_NOP, -1, 100 + i);
		submit(&ring, 1);
	}
	struct __kernel_timespec hour = {.tv_sec = 3600};
	struct io_uring_sqe *one = request(&ring, IORING_OP_TIMEOUT, -1, 200);
	one->addr = (uintptr_t)&hour, one->len = 1;
	submit(&ring, 1);

	freeze_here();
	spoil(((struct io_uring_cqe *)(ring.memory + ring.parameters.cq_off.cqes))[1].res = 5;);

	same("completions", 8, waiting(&ring));
	for (int i = 0; i < 14; i++)
		takes(&ring, 100 + i, i % 3 == 2 ? -EBADF : 0);
	one = request(&ring, IORING_OP_TIMEOUT_REMOVE, -1, 201);
	one->addr = 200;
	submit(&ring, 1);
	for (int i = 0; i < 2; i++) { /* in any order */
		struct io_uring_cqe found = take(&ring);
		if (found.user_data == 200)
			same("the timeout", -ECANCELED, found.res);
		else
			expect(found.user_data == 201 && (found.res == 0 || found.res == -ENOENT), "the removal: %ld, %d", (long)found.user_data, found.res);
	}
	return report();
}

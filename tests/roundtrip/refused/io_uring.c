/* Holds a ring of io_uring, for which a thread of the kernel's waits. */
#include "../programs/wait.h"
#include <linux/io_uring.h>

int main(void) {
	struct io_uring_params parameters = {0};
	char found = 0, *submissions, *completions;
	int ends[2], ring = must(syscall(SYS_io_uring_setup, 4, &parameters));
	must(fcntl(ring, F_DUPFD, 77));
	close(ring);
	must(pipe(ends));
	submissions = must(mmap(NULL, parameters.sq_off.array + 16, PROT_READ | PROT_WRITE, MAP_SHARED, 77, IORING_OFF_SQ_RING));
	completions = must(mmap(NULL, parameters.cq_off.cqes + 256, PROT_READ | PROT_WRITE, MAP_SHARED, 77, IORING_OFF_CQ_RING));
	struct io_uring_sqe *requests = must(mmap(NULL, 4 * sizeof *requests, PROT_READ | PROT_WRITE, MAP_SHARED, 77, IORING_OFF_SQES));
	requests[0] = (struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = ends[0], .addr = (uintptr_t)&found, .len = 1};
	*(unsigned *)(submissions + parameters.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(submissions + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, 77, 1, 0, 0, NULL, 0));
	freeze_here();
	must(write(ends[1], "x", 1));
	must(syscall(SYS_io_uring_enter, 77, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	struct io_uring_cqe *done = (struct io_uring_cqe *)(completions + parameters.cq_off.cqes);
	same("what was read", 1, done->res);
	same("the byte", 'x', found);
	return report();
}

/* An io_uring: completions that nobody has taken, a request not yet submitted, and four on their way. */
// arguments: 0 | 0x1000 | 0x3100 | 0xc00
#include "ring.h"
#include <poll.h>
#include <sys/socket.h>

static char read_into[64], received_into[64];

int main(int count, char **arguments) {
	struct ring ring;
	int polled[2], read_from[2], pair[2];
	(void)count;
	must(pipe(polled));
	must(pipe(read_from));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	make_ring(&ring, 8, strtoul(arguments[1], NULL, 0), 0);

	for (int i = 0; i < 1003; i++) {
		request(&ring, IORING_OP_NOP, -1, i);
		submit(&ring, 1);
		if (i < 1001)
			takes(&ring, i, 0);
	}
	struct __kernel_timespec hour = {.tv_sec = 3600};
	struct io_uring_sqe *one = request(&ring, IORING_OP_POLL_ADD, polled[0], 2001);
	one->poll32_events = POLLIN;
	one = request(&ring, IORING_OP_READ, read_from[0], 2002);
	one->addr = (uintptr_t)read_into, one->len = sizeof read_into, one->off = -1;
	one = request(&ring, IORING_OP_TIMEOUT, -1, 2003);
	one->addr = (uintptr_t)&hour, one->len = 1;
	one = request(&ring, IORING_OP_RECV, pair[0], 2004);
	one->addr = (uintptr_t)received_into, one->len = sizeof received_into;
	submit(&ring, 4);
	request(&ring, IORING_OP_NOP, -1, 2005); /* not submitted */

	freeze_here();
	spoil(((struct io_uring_cqe *)(ring.memory + ring.parameters.cq_off.cqes))[1001 % 16 << !!(ring.parameters.flags & IORING_SETUP_CQE32)].user_data = 5;);

	same("the head of the requests", 1007, *word(&ring, ring.parameters.sq_off.head));
	same("their tail", 1008, *word(&ring, ring.parameters.sq_off.tail));
	takes(&ring, 1001, 0);
	takes(&ring, 1002, 0);
	bool cancelled = waiting(&ring);
	if (cancelled)
		takes(&ring, 2003, -ECANCELED);
	same("completions", 0, waiting(&ring));
	must(write(polled[1], "x", 1));
	takes(&ring, 2001, POLLIN);
	must(write(read_from[1], "hello", 5));
	takes(&ring, 2002, 5);
	expect(memcmp(read_into, "hello", 5) == 0, "read was %.5s", read_into);
	submit(&ring, 1);
	takes(&ring, 2005, 0);
	must(write(pair[1], "bye", 3));
	takes(&ring, 2004, 3);
	expect(memcmp(received_into, "bye", 3) == 0, "received was %.3s", received_into);
	one = request(&ring, IORING_OP_TIMEOUT_REMOVE, -1, 2006);
	one->addr = 2003;
	submit(&ring, 1);
	for (int left = cancelled ? 1 : 2; left; left--) { /* in any order */
		struct io_uring_cqe found = take(&ring);
		same("what came of the timeout", found.user_data == 2003 ? -ECANCELED : cancelled ? -ENOENT : 0, found.res);
	}
	for (int i = 0; i < 20; i++) {
		for (int j = 0; j < 8; j++)
			request(&ring, IORING_OP_NOP, -1, 100 * i + j);
		submit(&ring, 8);
		for (int j = 0; j < 8; j++)
			takes(&ring, 100 * i + j, 0);
	}
	return report();
}

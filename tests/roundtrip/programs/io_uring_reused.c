/* An io_uring whose requests have the same user_data again and again, and one on its way that is long out of its slot. */
// arguments: 0 | 0x3000
// never: left_running restored_from_a_snapshot set_back
#include "ring.h"
#include <poll.h>

static char into[8];

static void reads(struct ring *ring, int fd) {
	struct io_uring_sqe *one = request(ring, IORING_OP_READ, fd, 7);
	one->addr = (uintptr_t)into, one->len = sizeof into;
	submit(ring, 1);
}

int main(int count, char **arguments) {
	struct ring ring;
	int read_from[2], polled[2];
	(void)count;
	must(pipe(read_from));
	must(pipe(polled));
	make_ring(&ring, 8, strtoul(arguments[1], NULL, 0), 0);
	for (int i = 0; i < 30; i++) {
		if (i == 10) {
			request(&ring, IORING_OP_POLL_ADD, polled[0], 8)->poll32_events = POLLIN;
			submit(&ring, 1);
		}
		reads(&ring, read_from[0]);
		must(write(read_from[1], "again", 5));
		takes(&ring, 7, 5);
	}
	reads(&ring, read_from[0]);

	freeze_here();
	spoil(must(write(read_from[1], "lost", 4)););

	must(write(polled[1], "x", 1));
	struct io_uring_cqe found = take(&ring);
	same("who was polled", 8, found.user_data);
	expect(found.res == POLLIN || found.res == -ECANCELED, "the poll gave %d", found.res);
	must(write(read_from[1], "there", 5));
	takes(&ring, 7, 5);
	expect(memcmp(into, "there", 5) == 0, "read was %.5s", into);
	same("completions", 0, waiting(&ring));
	reads(&ring, read_from[0]);
	must(write(read_from[1], "once", 4));
	takes(&ring, 7, 4);
	return report();
}

/* An io_uring for which a thread of the kernel's looks (IORING_SETUP_SQPOLL): with a request on its way, with a child that has it, too. */
// arguments: 2 | 0x1002 | 2 limited
#include "ring.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>

static void submits(struct ring *ring) { /* the thread takes requests by itself, unless it sleeps */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(word(ring, ring->parameters.sq_off.flags), __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP)
		must(syscall(SYS_io_uring_enter, ring->fd, 1, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0));
}

int main(int count, char **arguments) {
	struct ring ring;
	int polled[2], ends[2];
	char byte = 0;
	must(pipe(polled));
	must(pipe(ends));
	make_ring(&ring, 8, strtoul(arguments[1], NULL, 0), 20);
	for (int i = 0; i < 50; i++) {
		request(&ring, IORING_OP_NOP, -1, i);
		submits(&ring);
		if (i < 49)
			takes(&ring, i, 0);
	}
	struct io_uring_sqe *one = request(&ring, IORING_OP_POLL_ADD, polled[0], 100);
	one->poll32_events = POLLIN;
	submits(&ring);
	while (__atomic_load_n(word(&ring, ring.parameters.sq_off.head), __ATOMIC_ACQUIRE) != 51)
		sched_yield();
	int epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, ring.fd, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 9}));
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		wait_for("polled");
		_exit(*word(&ring, ring.parameters.cq_off.head) != 51);
	}
	if (count > 2) /* there is no room to choose an address by taking all others */
		must(setrlimit(RLIMIT_AS, &(struct rlimit){64 << 20, 128 << 20}));

	freeze_here();
	spoil(((struct io_uring_cqe *)(ring.memory + ring.parameters.cq_off.cqes))[49 % 16].user_data = 5;);

	struct epoll_event ready = {0};
	takes(&ring, 49, 0);
	same("ready", 0, epoll_wait(epoll, &ready, 1, 0));
	must(write(polled[1], "x", 1));
	same("ready", 1, epoll_wait(epoll, &ready, 1, 1000));
	same("what is ready", 9, ready.data.u64);
	takes(&ring, 100, POLLIN);
	say("polled");
	join(child);
	must(write(ends[1], "y", 1));
	one = request(&ring, IORING_OP_READ, ends[0], 101);
	one->addr = (uintptr_t)&byte, one->len = 1;
	submits(&ring);
	takes(&ring, 101, 1);
	same("the byte", 'y', byte);
	for (int i = 0; i < 30; i++) {
		request(&ring, IORING_OP_NOP, -1, i);
		submits(&ring);
		takes(&ring, i, 0);
	}
	return report();
}

/* What is registered with an io_uring: files, buffers, an eventfd, the ring itself; an epoll and a child have it, too. */
// arguments: 0 | 0x1000 | 0x3000
#include "ring.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

static char buffers[2][4096] __attribute__((aligned(4096)));

static void *entering(void *of) { /* a thread that has the ring registered at another place */
	struct ring *ring = of;
	struct io_uring_rsrc_update update = {.offset = 5, .data = ring->fd};
	same("ring registered", 1, syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_RING_FDS, &update, 1));
	say("registered");
	wait_for("check");
	same("by the thread's number", 0, syscall(SYS_io_uring_enter, 5, 0, 0, IORING_ENTER_REGISTERED_RING, NULL, 0));
	same("by none", -1, syscall(SYS_io_uring_enter, 4, 0, 0, IORING_ENTER_REGISTERED_RING, NULL, 0));
	return NULL;
}

int main(int count, char **arguments) {
	struct ring ring;
	pthread_t thread;
	(void)count;
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0600)), event = must(eventfd(0, EFD_NONBLOCK)), epoll = must(epoll_create1(0));
	must(write(file, "0123456789", 10));
	make_ring(&ring, 16, strtoul(arguments[1], NULL, 0), 0);
	int files[] = {-1, file, -1};
	must(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, files, 3));
	struct iovec places[] = {{buffers[0], 4096}, {NULL, 0}, {buffers[1] + 100, 200}};
	must(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, places, 3));
	must(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_EVENTFD, &event, 1));
	struct io_uring_rsrc_update update = {.offset = -1u, .data = ring.fd};
	must(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_RING_FDS, &update, 1));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, ring.fd, &(struct epoll_event){.events = EPOLLIN}));
	bool only_one = ring.parameters.flags & IORING_SETUP_SINGLE_ISSUER;
	if (!only_one) {
		pthread_create(&thread, NULL, entering, &ring);
		wait_for("registered");
	}
	unsigned *head = word(&ring, ring.parameters.cq_off.head);
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("asked");
		spoil(_exit(1););
		_exit(!waiting(&ring) || *head != 0);
	}

	freeze_here();
	spoil(must(syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_EVENTFD, NULL, 0)););

	struct epoll_event ready;
	eventfd_t told = 0;
	same("ready", 0, epoll_wait(epoll, &ready, 1, 0));
	same("told", -1, eventfd_read(event, &told));
	struct io_uring_sqe *one = request(&ring, IORING_OP_READ_FIXED, 1, 1);
	one->flags = IOSQE_FIXED_FILE, one->addr = (uintptr_t)buffers[1] + 150, one->len = 4, one->off = 3, one->buf_index = 2;
	same("submitted", 1, syscall(SYS_io_uring_enter, update.offset, 1, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0));
	same("ready", 1, epoll_wait(epoll, &ready, 1, 1000));
	eventfd_read(event, &told);
	same("told", 1, told);
	say("asked");
	join(child);
	takes(&ring, 1, 4);
	expect(memcmp(buffers[1] + 150, "3456", 4) == 0, "read was %.4s", buffers[1] + 150);
	request(&ring, IORING_OP_READ_FIXED, 2, 2)->flags = IOSQE_FIXED_FILE;
	submit(&ring, 1);
	takes(&ring, 2, -EBADF);
	if (!only_one)
		pthread_join(thread, NULL);
	return report();
}

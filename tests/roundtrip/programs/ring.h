/* An io_uring by plain system calls: made, filled with requests, and its completions taken. */
#pragma once
#include "wait.h"
#include <linux/io_uring.h>

struct ring {
	int fd;
	struct io_uring_params parameters;
	char *memory;
	struct io_uring_sqe *requests;
	unsigned ready; /* the tail of the requests, as a library keeps it for itself */
};

static inline unsigned *word(struct ring *ring, unsigned offset) { return (unsigned *)(ring->memory + offset); }

static inline void make_ring(struct ring *ring, unsigned entries, unsigned flags, int number) {
	*ring = (struct ring){.parameters.flags = flags};
	ring->fd = must(syscall(SYS_io_uring_setup, entries, &ring->parameters));
	if (number) {
		must(dup3(ring->fd, number, O_CLOEXEC));
		close(ring->fd);
		ring->fd = number;
	}
	size_t length = ring->parameters.sq_off.array + 4 * ring->parameters.sq_entries;
	ring->memory = must(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING));
	length = ring->parameters.sq_entries * sizeof *ring->requests << !!(flags & IORING_SETUP_SQE128);
	ring->requests = must(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES));
}

/* Put a request into the ring; it is not submitted yet. */
static inline struct io_uring_sqe *request(struct ring *ring, int operation, int fd, uint64_t data) {
	unsigned mask = ring->parameters.sq_entries - 1, head = __atomic_load_n(word(ring, ring->parameters.sq_off.head), __ATOMIC_ACQUIRE);
	expect(ring->ready - head <= mask, "the ring is full: %u of %u", ring->ready - head, mask + 1);
	unsigned at = ring->ready++ & mask;
	word(ring, ring->parameters.sq_off.array)[at] = at;
	struct io_uring_sqe *one = &ring->requests[at << !!(ring->parameters.flags & IORING_SETUP_SQE128)];
	*one = (struct io_uring_sqe){.opcode = operation, .fd = fd, .user_data = data};
	__atomic_store_n(word(ring, ring->parameters.sq_off.tail), ring->ready, __ATOMIC_RELEASE);
	return one;
}

static inline int enter(struct ring *ring, unsigned submit, unsigned wait) {
	return syscall(SYS_io_uring_enter, ring->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

static inline void submit(struct ring *ring, unsigned count) { same("submitted", count, enter(ring, count, 0)); }

static inline unsigned waiting(struct ring *ring) {
	return __atomic_load_n(word(ring, ring->parameters.cq_off.tail), __ATOMIC_ACQUIRE) - *word(ring, ring->parameters.cq_off.head);
}

/* Wait for a completion, and take it. */
static inline struct io_uring_cqe take(struct ring *ring) {
	if (!waiting(ring))
		must(enter(ring, 0, 1));
	unsigned *head = word(ring, ring->parameters.cq_off.head);
	struct io_uring_cqe *all = (struct io_uring_cqe *)(ring->memory + ring->parameters.cq_off.cqes);
	unsigned at = *head & (ring->parameters.cq_entries - 1);
	struct io_uring_cqe found = all[at << !!(ring->parameters.flags & IORING_SETUP_CQE32)];
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return found;
}

static inline void takes(struct ring *ring, uint64_t data, int result) {
	struct io_uring_cqe found = take(ring);
	same("whose completion it is", data, found.user_data);
	expect(found.res == result, "request %ld: %d instead of %d", (long)data, found.res, result);
}

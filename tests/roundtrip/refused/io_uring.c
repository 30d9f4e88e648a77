/* Holds an io_uring, descriptor 77, of a kind that can't be saved. */
#include "../programs/ring.h"
#include <sys/eventfd.h>
#ifndef IORING_SETUP_NO_MMAP
#define IORING_SETUP_NO_MMAP (1u << 14)
#endif

static struct ring ring;

static void asks(int operation, const void *argument, int count) { must(syscall(SYS_io_uring_register, 77, operation, argument, count)); }

static void bare(struct io_uring_params *parameters) { /* a ring that nobody has mapped by mmap(2) */
	int made = must(syscall(SYS_io_uring_setup, 4, parameters));
	must(dup3(made, 77, 0));
	close(made);
}

int main(int count, char **arguments) {
	const char *kind = arguments[1];
	bool usable = true;
	(void)count;
	if (strcmp(kind, "own-memory") == 0) {
		char *memory = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
		struct io_uring_params parameters = {.flags = IORING_SETUP_NO_MMAP};
		*(uint64_t *)((char *)&parameters.cq_off + 32) = (uintptr_t)memory;
		*(uint64_t *)((char *)&parameters.sq_off + 32) = (uintptr_t)memory + 4096;
		bare(&parameters);
		usable = false;
	} else {
		unsigned flags = strcmp(kind, "disabled") == 0 || strcmp(kind, "restricted") == 0 ? IORING_SETUP_R_DISABLED : 0;
		make_ring(&ring, 4, flags, 77);
		usable = !(flags & IORING_SETUP_R_DISABLED);
	}
	if (strcmp(kind, "credentials") == 0) {
		request(&ring, IORING_OP_NOP, -1, 0)->personality = must(syscall(SYS_io_uring_register, 77, IORING_REGISTER_PERSONALITY, NULL, 0));
		submit(&ring, 1);
		takes(&ring, 0, 0);
	} else if (strcmp(kind, "restricted") == 0) {
		struct io_uring_restriction only = {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP};
		asks(IORING_REGISTER_RESTRICTIONS, &only, 1);
		asks(IORING_REGISTER_ENABLE_RINGS, NULL, 0);
		usable = true;
	} else if (strcmp(kind, "buffers") == 0) {
		static char buffers[2][64];
		struct io_uring_sqe *one = request(&ring, IORING_OP_PROVIDE_BUFFERS, 2, 1);
		one->addr = (uintptr_t)buffers, one->len = 64, one->buf_group = 7;
		submit(&ring, 1);
		takes(&ring, 1, 0);
	} else if (strcmp(kind, "buffer-ring") == 0) {
		struct io_uring_buf_reg ring_of_buffers = {.ring_addr = (uintptr_t)must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), .ring_entries = 8, .bgid = 3};
		asks(IORING_REGISTER_PBUF_RING, &ring_of_buffers, 1);
	} else if (strcmp(kind, "closed-file") == 0) {
		int file = must(open("/proc/self/status", O_RDONLY));
		asks(IORING_REGISTER_FILES, &file, 1);
		close(file);
	} else if (strcmp(kind, "eventfd") == 0) {
		int events[] = {must(eventfd(0, 0)), must(eventfd(0, 0))};
		asks(IORING_REGISTER_EVENTFD, &events[1], 1);
	}
	freeze_here();
	if (usable) {
		request(&ring, IORING_OP_NOP, -1, 1);
		submit(&ring, 1);
		takes(&ring, 1, 0);
	}
	return report();
}

/* Event counters: a full one, one in semaphore mode, one that doesn't block. */
#include "wait.h"
#include <sys/eventfd.h>

int main(void) {
	int big = must(eventfd(0, 0));
	int semaphore = must(eventfd(7, EFD_SEMAPHORE | EFD_CLOEXEC));
	int empty = must(eventfd(0, EFD_NONBLOCK));
	must(eventfd_write(big, (1ull << 40) + 3));
	must(eventfd_write(big, UINT64_MAX - 2 - (1ull << 40) - 3)); /* 32 bits don't hold it */

	freeze_here();
	spoil(eventfd_t lost; eventfd_read(semaphore, &lost););

	eventfd_t value = 0;
	expect(fcntl(semaphore, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
	expect(eventfd_read(empty, &value) == -1 && errno == EAGAIN, "the empty one gave %ld", value);
	expect(fcntl(big, F_GETFL) == O_RDWR, "flags are %#x", fcntl(big, F_GETFL));
	must(eventfd_read(big, &value));
	expect(value == UINT64_MAX - 2, "the counter is %#lx", value);
	for (int i = 0; i < 7; i++) {
		value = 0;
		expect(fcntl(semaphore, F_SETFL, O_NONBLOCK) == 0, "no flags");
		expect(eventfd_read(semaphore, &value) == 0 && value == 1, "semaphore: taken %d", i);
	}
	expect(eventfd_read(semaphore, &value) == -1 && errno == EAGAIN, "the semaphore is too high");
	return report();
}

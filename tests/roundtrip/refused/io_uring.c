/* Holds a ring of io_uring. */
#include "../programs/wait.h"

int main(void) {
	char parameters[120] = {0};
	int ring = must(syscall(SYS_io_uring_setup, 4, parameters));
	must(fcntl(ring, F_DUPFD, 77));
	close(ring);
	freeze_here();
	expect(fcntl(77, F_GETFD) >= 0, "the ring has gone");
	return report();
}

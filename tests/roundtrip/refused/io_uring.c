/* Holds an io_uring with registered credentials, of which nobody can tell all. */
#include "../programs/ring.h"

int main(void) {
	struct ring ring;
	make_ring(&ring, 4, 0, 77);
	request(&ring, IORING_OP_NOP, -1, 0)->personality = must(syscall(SYS_io_uring_register, 77, IORING_REGISTER_PERSONALITY, NULL, 0));
	submit(&ring, 1);
	takes(&ring, 0, 0);
	freeze_here();
	request(&ring, IORING_OP_NOP, -1, 1);
	submit(&ring, 1);
	takes(&ring, 1, 0);
	return report();
}

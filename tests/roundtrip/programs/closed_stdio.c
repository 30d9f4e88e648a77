/* A program that closed its standard descriptors, or put other things there, finds just that. */
#include "wait.h"

int main(void) {
	char byte[8] = "";
	int file = must(open(in_work("input"), O_RDWR | O_CREAT, 0644));
	must(write(file, "input", 5));
	must(lseek(file, 1, SEEK_SET));
	must(dup2(file, 0));
	close(file);
	close(1);
	int errors = fcntl(2, F_GETFL);
	freeze_here();
	spoil(must(dup2(2, 1)););
	expect(read(0, byte, 7) == 4 && !strcmp(byte, "nput"), "0 gives %s", byte);
	expect(fcntl(1, F_GETFL) == -1 && errno == EBADF, "1 is open");
	same("flags of 2", errors & O_ACCMODE, fcntl(2, F_GETFL) & O_ACCMODE);
	return report();
}

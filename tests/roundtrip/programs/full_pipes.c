/* Pipes that hold very much, all together. */
#include "wait.h"

enum { PIPES = 40, SIZE = 1 << 20 };
static char bytes[SIZE];

int main(void) {
	int ends[PIPES][2];
	for (int i = 0; i < PIPES; i++) {
		must(pipe2(ends[i], O_NONBLOCK));
		must(fcntl(ends[i][1], F_SETPIPE_SZ, SIZE));
		fill(bytes, SIZE, i);
		same("what goes in", SIZE, must(write(ends[i][1], bytes, SIZE)));
	}

	freeze_here();
	spoil(must(read(ends[0][0], bytes, 1)););

	for (int i = 0; i < PIPES; i++) {
		same("what comes out", SIZE, read(ends[i][0], bytes, SIZE));
		expect(is_filled(bytes, SIZE, i), "pipe %d holds something else", i);
	}
	return report();
}

/* Nine hundred descriptors of three hundred files, in an order of their own. */
#include "wait.h"

enum { FILES = 300 };

int main(void) {
	char name[32], byte[8];
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof name, "file%d", i);
		int file = must(open(in_work(name), O_RDWR | O_CREAT | O_TRUNC, 0644)), low = 3 + (i * 7) % FILES + 400;
		must(dprintf(file, "%d", i));
		must(lseek(file, 0, SEEK_SET));
		must(fcntl(file, F_DUPFD, 20));
		must(dup2(file, low));
	}
	freeze_here();
	spoil(must(dup2(404, 405)););
	for (int i = 0; i < FILES; i++) {
		memset(byte, 0, sizeof byte);
		int low = 3 + (i * 7) % FILES + 400;
		expect(read(low, byte, 7) > 0 && atoi(byte) == i, "descriptor %d is of file %s, not %d", low, byte, i);
		same("position, moved by its copy", strlen(byte), lseek(low, 0, SEEK_CUR));
	}
	return report();
}

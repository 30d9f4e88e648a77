/* A directory of a tmpfs in the middle of being read, in which files have been removed: each that is left comes exactly once. */
#include "wait.h"
#include <dirent.h>

enum { ENTRIES = 400, REMOVED = 150 };

struct entry {
	uint64_t inode;
	int64_t position;
	unsigned short length;
	unsigned char type;
	char name[];
};

static char seen[ENTRIES];

/* Read a batch; returns how many bytes. */
static long look(int directory) {
	char batch[2048];
	long got = must(syscall(SYS_getdents64, directory, batch, sizeof batch));
	for (long at = 0; at < got; at += ((struct entry *)(batch + at))->length) {
		int number;
		if (sscanf(((struct entry *)(batch + at))->name, "entry-%d", &number) == 1)
			seen[number]++;
	}
	return got;
}

int main(void) {
	char name[64];
	must(mkdir("/tmp/d", 0755));
	for (int i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof name, "/tmp/d/entry-%d", i);
		close(must(open(name, O_WRONLY | O_CREAT, 0600)));
		if (i < REMOVED)
			must(unlink(name));
	}
	int directory = must(open("/tmp/d", O_RDONLY | O_DIRECTORY));
	expect(look(directory) > 0 && look(directory) > 0, "it is empty");

	freeze_here();
	spoil(must(lseek(directory, 0, SEEK_SET)););

	expect(look(directory) > 0, "it is at its end");
	while (look(directory) > 0)
		;
	for (int i = 0; i < ENTRIES; i++)
		expect(seen[i] == (i >= REMOVED), "entry %d came %d times", i, seen[i]);
	return report();
}

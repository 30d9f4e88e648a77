/* A terabyte of reserved addresses, with a few pages in the middle, and of a mapping that may only be read. */
#include "memory.h"

enum { TERABYTE_BITS = 40 };

int main(void) {
	size_t size = 1ul << TERABYTE_BITS;
	char *reserved = must(mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *readable = must(mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *used = reserved + size / 2;
	must(mprotect(used, 4 * PAGE, PROT_READ | PROT_WRITE));
	fill(used, 2 * PAGE, 7);
	must(mprotect(used + PAGE, PAGE, PROT_NONE));
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(mprotect(reserved, PAGE, PROT_READ)););

	same_maps(maps, read_proc("/proc/self/maps"));
	must(mprotect(used + PAGE, PAGE, PROT_READ));
	expect(is_filled(used, 2 * PAGE, 7), "the pages in use differ");
	same("reading what was never written", 0, readable[size / 3]);
	must(mprotect(reserved, PAGE, PROT_READ | PROT_WRITE));
	reserved[1] = 1;
	return report();
}

/* A private mapping of a file: the pages written are ours, the others are the file's; the file itself is untouched. */
#include "memory.h"

int main(void) {
	static char page[PAGE];
	int file = must(open(in_work("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0644));
	for (int i = 0; i < 16; i++) {
		fill(page, PAGE, i);
		must(pwrite(file, page, PAGE, i * PAGE));
	}
	must(pwrite(file, "tail", 4, 16 * PAGE));
	char *memory = must(mmap(NULL, 14 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 3 * PAGE));
	char *readable = must(mmap(NULL, 17 * PAGE, PROT_READ, MAP_PRIVATE, file, 0));
	close(file);
	fill(memory + 2 * PAGE, PAGE, 100);
	fill(memory + 9 * PAGE, 2 * PAGE, 200);
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(madvise(memory + 9 * PAGE, PAGE, MADV_DONTNEED)););

	same_maps(maps, read_proc("/proc/self/maps"));
	for (int i = 0; i < 13; i++)
		if (i == 2 || i == 9)
			expect(is_filled(memory + i * PAGE, i == 9 ? 2 * PAGE : PAGE, i == 2 ? 100 : 200), "our page %d is lost", i);
		else if (i != 10)
			expect(is_filled(memory + i * PAGE, PAGE, i + 3), "the file's page %d isn't there", i);
	expect(!memcmp(memory + 13 * PAGE, "tail", 5), "the last page isn't there");
	for (int i = 0; i < 16; i++)
		expect(is_filled(readable + i * PAGE, PAGE, i), "the file's page %d has changed", i);
	must(madvise(memory + 2 * PAGE, PAGE, MADV_DONTNEED));
	expect(is_filled(memory + 2 * PAGE, PAGE, 5), "after MADV_DONTNEED it isn't the file's page");
	return report();
}

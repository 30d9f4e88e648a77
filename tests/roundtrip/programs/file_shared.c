/* A shared mapping of a file: what is written there comes into the file, also afterwards. */
#include "memory.h"

int main(void) {
	static char page[PAGE];
	int file = must(open(in_work("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(file, 8 * PAGE));
	char *memory = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	char *readable = must(mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, file, 4 * PAGE));
	char *maps = read_proc("/proc/self/maps");
	fill(memory, 2 * PAGE, 1);

	freeze_here();
	spoil(must(mmap(memory, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0)););

	same_maps(maps, read_proc("/proc/self/maps"));
	expect(is_filled(memory, 2 * PAGE, 1), "what was written before is lost");
	fill(memory + 5 * PAGE, PAGE, 2);
	must(pread(file, page, PAGE, 5 * PAGE));
	expect(is_filled(page, PAGE, 2), "the file doesn't get what is written to memory");
	expect(is_filled(readable + PAGE, PAGE, 2), "the other mapping doesn't either");
	fill(page, PAGE, 3);
	must(pwrite(file, page, PAGE, 6 * PAGE));
	expect(is_filled(memory + 6 * PAGE, PAGE, 3), "memory doesn't get what is written to the file");
	return report();
}

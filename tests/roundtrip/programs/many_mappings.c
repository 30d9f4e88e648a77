/* Three thousand mappings, each with something of its own. */
#include "memory.h"

enum { MAPPINGS = 3000 };

int main(void) {
	char *memory = anonymous(MAPPINGS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (int i = 0; i < MAPPINGS; i++) {
		fill(memory + i * PAGE, i % 5 ? 64 : PAGE, i);
		if (i % 2)
			must(mprotect(memory + i * PAGE, PAGE, i % 4 == 1 ? PROT_READ : PROT_READ | PROT_EXEC));
	}
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(mprotect(memory + 777 * PAGE, PAGE, PROT_NONE)); must(mprotect(memory + 777 * PAGE, PAGE, PROT_READ | PROT_WRITE)););

	same_maps(maps, read_proc("/proc/self/maps"));
	for (int i = 0; i < MAPPINGS; i++)
		expect(is_filled(memory + i * PAGE, i % 5 ? 64 : PAGE, i), "mapping %d holds something else", i);
	return report();
}

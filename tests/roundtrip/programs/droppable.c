/* Droppable memory (MAP_DROPPABLE): it may lose what is in it, and isn't there for children. */
// feature: droppable
#include "memory.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

int main(void) {
	char *memory = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0));
	char was[128], is[128];
	fill(memory, 4 * PAGE, 1);
	smaps_flags(memory, was);
	freeze_here();
	spoil(must(mmap(memory, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)););
	smaps_flags(memory, is);
	expect(!strcmp(was, is), "flags were %s, are %s", was, is);
	for (int page = 0; page < 4; page++)
		expect(memory[page * PAGE] == 0 || is_filled(memory + page * PAGE, PAGE, 1 + page * PAGE / 8), "page %d holds something else", page);
	pid_t child = must(fork());
	if (child == 0)
		_exit(memory[0] != 0);
	join(child);
	return report();
}

/* Stacks: the main one, and a mapping with MAP_GROWSDOWN, grow on afterwards. */
#include "memory.h"

__attribute__((noinline)) static int deep(int level) {
	volatile char frame[4096];
	frame[level % 4096] = level;
	return level ? deep(level - 1) + frame[level % 4096] - (char)level : 0;
}

int main(void) {
	char *room = anonymous(2000 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
	must(munmap(room, 2000 * PAGE));
	char *stack = must(mmap(room + 1990 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
	char flags[128], flags_after[128];
	fill(stack, 10 * PAGE, 1);
	fill(stack - 5 * PAGE, 5 * PAGE, 2); /* grown before */
	smaps_flags(stack - 5 * PAGE, flags);
	deep(100);

	freeze_here();
	spoil(must(mmap(stack - 5 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)););

	smaps_flags(stack - 5 * PAGE, flags_after);
	expect(!strcmp(flags, flags_after), "flags were %s, are %s", flags, flags_after);
	expect(is_filled(stack, 10 * PAGE, 1) && is_filled(stack - 5 * PAGE, 5 * PAGE, 2), "it holds something else");
	if (!strstr(flags_after, " gd"))
		return report();
	fill(stack - 50 * PAGE, 40 * PAGE, 3); /* grows now, or dies */
	expect(is_filled(stack - 50 * PAGE, 40 * PAGE, 3), "it doesn't grow");
	expect(deep(1000) == 0, "the main stack");
	return report();
}

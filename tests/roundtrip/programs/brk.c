/* The heap: its contents, and that it grows on where it ended. */
#include "memory.h"

int main(void) {
	char *old = must(sbrk(0));
	must(sbrk(300 * PAGE + 123));
	fill(old + 8 - (long)old % 8, 200 * PAGE, 1);
	char *end = must(sbrk(0)), *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(sbrk(-PAGE););

	same_maps(maps, read_proc("/proc/self/maps"));
	same("the break", end, sbrk(0));
	expect(is_filled(old + 8 - (long)old % 8, 200 * PAGE, 1), "the heap holds something else");
	expect(strstr(read_proc("/proc/self/maps"), "[heap]") != NULL, "it isn't called [heap]");
	expect(sbrk(400 * PAGE) == end, "it doesn't grow where it ended");
	fill(end + 8 - (long)end % 8, 399 * PAGE, 2);
	same("shrinking", 0, brk(old));
	free(malloc(1 << 16));
	return report();
}

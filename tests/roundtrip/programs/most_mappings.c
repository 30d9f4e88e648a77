/* As many mappings as leave room for those that are lent for a freeze (vm.max_map_count). */
// never: restored_twice restored_from_a_snapshot after_a_failed_checkpoint
#include "memory.h"

enum { LENT = 2 };

int main(void) {
	char *last[LENT + 2];
	unsigned count = 0;
	for (char *one; (one = mmap(NULL, PAGE, count % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED;)
		last[count++ % (LENT + 2)] = one;
	for (int i = 0; i < LENT + 1; i++)
		must(munmap(last[(count - 1 - i) % (LENT + 2)], PAGE));
	freeze_here();
	spoil(must(munmap(last[count % (LENT + 2)], PAGE)););
	for (int i = 0; i < LENT + 1; i++)
		must(mmap(NULL, PAGE, (count - i) % 2 ? PROT_NONE: PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	expect(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "there is more room");
	return report();
}

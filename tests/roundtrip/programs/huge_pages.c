/* Memory in huge pages, partly written; parts of it given back; a fork's copy of it. */
#include "memory.h"

enum { SIZE = 8 << 20 };

int main(void) {
	char *room = anonymous(2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
	char *memory = room + (2 << 20) - (long)room % (2 << 20);
	must(mprotect(memory, SIZE, PROT_READ | PROT_WRITE));
	must(madvise(memory, SIZE, MADV_HUGEPAGE));
	fill(memory, 5 << 20, 1);
	must(madvise(memory + (1 << 20), 8 * PAGE, MADV_DONTNEED));
	pid_t child = must(fork());
	if (child == 0) {
		fill(memory + (3 << 20), PAGE, 2);
		wait_for("check");
		expect(is_filled(memory, 1 << 20, 1) && is_filled(memory + (3 << 20), PAGE, 2), "the child's copy holds something else");
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	spoil(memory[1 << 20] = 1;);
	join(child);
	expect(is_filled(memory, 1 << 20, 1), "its first part holds something else");
	for (long i = 1 << 20; i < (1 << 20) + 8 * (long)PAGE; i++)
		expect(memory[i] == 0, "what was given back isn't zero at %ld", i);
	expect(is_filled(memory + (1 << 20) + 8 * PAGE, (4 << 20) - 8 * PAGE, 1 + ((1 << 20) + 8 * PAGE) / 8), "its second part holds something else");
	expect(memory[SIZE - 1] == 0, "its untouched part isn't zero");
	return report();
}

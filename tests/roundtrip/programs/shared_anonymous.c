/* Shared anonymous memory of a parent, its children and a second mapping of it: one and the same, before and after. */
#include "memory.h"

int main(void) {
	char *memory = anonymous(300 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *other = anonymous(64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *again = must(mremap(memory + 8 * PAGE, 0, 16 * PAGE, MREMAP_MAYMOVE)); /* a second mapping of a part */
	fill(memory, 10 * PAGE, 1);
	fill(other, PAGE, 2);
	pid_t children[2];
	for (int i = 0; i < 2; i++) {
		if ((children[i] = must(fork())))
			continue;
		fill(memory + (20 + i) * PAGE, PAGE, 20 + i);
		munmap(other, 32 * PAGE);
		wait_for("check");
		spoil(must(mmap(memory, 300 * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, -1, 0)););
		fill(memory + (30 + i) * PAGE, PAGE, 30 + i);
		fill(other + (40 + i) * PAGE, PAGE, 40 + i);
		expect(is_filled(memory, 10 * PAGE, 1), "a child: what the parent wrote is lost");
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	char *maps = read_proc("/proc/self/maps");
	freeze_here();
	same_maps(maps, read_proc("/proc/self/maps"));
	expect(is_filled(other, PAGE, 2), "the other memory is lost");
	for (int i = 0; i < 2; i++) {
		join(children[i]);
		expect(is_filled(memory + (20 + i) * PAGE, PAGE, 20 + i), "what child %d wrote before is lost", i);
		expect(is_filled(memory + (30 + i) * PAGE, PAGE, 30 + i), "what child %d writes doesn't come here", i);
		expect(is_filled(other + (40 + i) * PAGE, PAGE, 40 + i), "nor in the other memory: %d", i);
	}
	fill(memory + 12 * PAGE, PAGE, 3);
	expect(is_filled(again + 4 * PAGE, PAGE, 3), "the second mapping is another memory");
	expect(memory[100 * PAGE] == 0 && memory[299 * PAGE] == 0, "untouched memory isn't zero");
	return report();
}

/* Memory that children got by fork, and wrote to in part: each has its own afterwards. */
#include "memory.h"

enum { CHILDREN = 4, PAGES = 4096 };

int main(void) {
	char *memory = anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	pid_t children[CHILDREN];
	fill(memory, PAGES * PAGE, 1);
	for (int child = 0; child < CHILDREN; child++) {
		if ((children[child] = must(fork())))
			continue;
		fill(memory + (100 + child) * PAGE, PAGE, 1000 + child);
		wait_for("check");
		spoil(fill(memory + (100 + child) * PAGE, PAGE, 1000););
		for (int page = 0; page < PAGES; page++)
			expect(is_filled(memory + page * PAGE, PAGE, page == 100 + child ? 1000 + child : 1 + page * (int)PAGE / 8), "child %d: page %d", child, page);
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	fill(memory + 200 * PAGE, PAGE, 7); /* no child sees it */
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	for (int child = 0; child < CHILDREN; child++)
		join(children[child]);
	expect(is_filled(memory, 200 * PAGE, 1), "the parent's pages");
	return report();
}

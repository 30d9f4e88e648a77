/* Guard pages inside a mapping, which madvise made (since Linux 6.13; in shared memory 6.15): touching them is a fault. */
// arguments: private | shared
// feature: pagemap_guard
#include "memory.h"
#include <setjmp.h>

static sigjmp_buf back;

static void handler(int number) { siglongjmp(back, number); }

static bool faults(volatile char *place) { return sigsetjmp(back, 1) ? true : (*place = 1, false); }

int main(int count, char **arguments) {
	bool shared = count > 1 && arguments[1][0] == 's';
	char *memory = anonymous(20 * PAGE, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE);
	signal(SIGSEGV, handler);
	fill(memory, 20 * PAGE, 1);
	bool guards = madvise(memory + 4 * PAGE, 3 * PAGE, 102 /* MADV_GUARD_INSTALL */) == 0;
	if (!guards)
		must(mprotect(memory + 4 * PAGE, 3 * PAGE, PROT_NONE));
	// And where no page is, in what a child would get empty.
	char *wiped = anonymous(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	must(madvise(wiped, 4 * PAGE, MADV_WIPEONFORK));
	if (!shared && guards)
		must(madvise(wiped + PAGE, PAGE, 102));
	freeze_here();
	spoil(must(guards ? madvise(memory + 4 * PAGE, 3 * PAGE, 103) : mprotect(memory + 4 * PAGE, 3 * PAGE, 3)););
	for (int i = 0; i < 20; i++)
		if (i >= 4 && i < 7)
			expect(faults(memory + i * PAGE), "guard page %d can be written", i);
		else
			expect(is_filled(memory + i * PAGE, PAGE, 1 + i * PAGE / 8), "page %d holds something else", i);
	for (int i = 0; i < 4; i++)
		expect(faults(wiped + i * PAGE) == (!shared && guards && i == 1), "page %d that a child would not get", i);
	return report();
}

/* Protections: a guard page, memory written before it became read-only or out of reach, code that was generated. */
#include "memory.h"
#include <setjmp.h>

static sigjmp_buf back;

static void handler(int number) { siglongjmp(back, number); }

static bool faults(volatile char *place, bool write) {
	if (sigsetjmp(back, 1))
		return true;
	if (write)
		*place = 1;
	else
		(void)*place;
	return false;
}

int main(void) {
	char *memory = anonymous(9 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	static const char answer[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
	signal(SIGSEGV, handler);
	fill(memory, 9 * PAGE, 1);
	memcpy(memory + 7 * PAGE, answer, sizeof answer);
	must(mprotect(memory + 1 * PAGE, PAGE, PROT_NONE));
	must(mprotect(memory + 3 * PAGE, PAGE, PROT_READ));
	must(mprotect(memory + 5 * PAGE, PAGE, PROT_WRITE));
	must(mprotect(memory + 7 * PAGE, PAGE, PROT_READ | PROT_EXEC));
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(mprotect(memory + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE)););

	same_maps(maps, read_proc("/proc/self/maps"));
	expect(faults(memory + PAGE, false), "the guard page can be read");
	expect(faults(memory + 3 * PAGE, true), "the read-only page can be written");
	expect(faults(memory + 7 * PAGE, true), "the code can be written");
	expect(((int (*)(void))(memory + 7 * PAGE))() == 42, "the code gives something else");
	must(mprotect(memory, 6 * PAGE, PROT_READ));
	expect(is_filled(memory, 6 * PAGE, 1), "it holds something else");
	return report();
}

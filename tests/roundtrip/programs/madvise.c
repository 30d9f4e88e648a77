/* What madvise said of a mapping: the flags that smaps shows, and what fork does with them. */
#include "memory.h"

static const int advices[] = {MADV_DONTFORK, MADV_WIPEONFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP,
	MADV_SEQUENTIAL, MADV_RANDOM, MADV_MERGEABLE};
enum { KINDS = sizeof advices / sizeof *advices };

int main(void) {
	char *places[KINDS + 1], was[KINDS + 1][128], is[128];
	for (int i = 0; i <= KINDS; i++) {
		places[i] = anonymous(5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | (i == KINDS ? MAP_NORESERVE : 0));
		must(mprotect(places[i] + 4 * PAGE, PAGE, PROT_NONE)); /* keeps neighbours apart */
		if (i < KINDS && madvise(places[i], 4 * PAGE, advices[i]) != 0 && advices[i] != MADV_MERGEABLE)
			differs("line 0: madvise %d: %s", advices[i], strerror(errno));
		fill(places[i], 4 * PAGE, i);
	}
	for (int i = 0; i <= KINDS; i++)
		smaps_flags(places[i], was[i]);

	freeze_here();
	spoil(must(madvise(places[1], 4 * PAGE, MADV_KEEPONFORK)););

	for (int i = 0; i <= KINDS; i++) {
		smaps_flags(places[i], is);
		expect(!strcmp(was[i], is), "mapping %d: flags were %s, are %s", i, was[i], is);
		expect(is_filled(places[i], 4 * PAGE, i), "mapping %d holds something else", i);
	}
	pid_t child = must(fork());
	if (child == 0) {
		expect(places[1][0] == 0 && places[1][3 * PAGE] == 0, "a child's copy isn't wiped");
		expect(msync(places[0], PAGE, MS_ASYNC) == -1 && errno == ENOMEM, "a child has what it shouldn't");
		_exit(0);
	}
	join(child);
	return report();
}

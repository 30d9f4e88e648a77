/* Locked memory: by mlock, on fault, and all that is mapped in the future. */
// arguments: parts | future | on_fault | future large
#include "memory.h"

int main(int count, char **arguments) {
	char was[3][128], is[128], *places[3];
	for (int i = 0; i < 3; i++) {
		places[i] = anonymous(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		must(mprotect(places[i] + 3 * PAGE, PAGE, PROT_NONE));
	}
	if (count > 2) { /* so many pages that we read its mappings ahead */
		char *large = anonymous(80 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		for (int i = 0; i < 80 << 20; i += PAGE)
			large[i] = 1;
	}
	must(mlock(places[0], 3 * PAGE));
	must(mlock2(places[1], 3 * PAGE, MLOCK_ONFAULT));
	fill(places[0], PAGE, 1);
	fill(places[1], PAGE, 2);
	if (count > 1 && arguments[1][0] == 'f')
		must(mlockall(MCL_FUTURE));
	if (count > 1 && arguments[1][0] == 'o')
		must(mlockall(MCL_FUTURE | MCL_ONFAULT));
	for (int i = 0; i < 3; i++)
		smaps_flags(places[i], was[i]);

	freeze_here();
	spoil(must(munlock(places[1], 3 * PAGE)); must(munlockall()););

	for (int i = 0; i < 3; i++) {
		smaps_flags(places[i], is);
		expect(!strcmp(was[i], is), "mapping %d: flags were %s, are %s", i, was[i], is);
	}
	same("kB locked", 12, smaps_number(places[0], "Locked:"));
	expect(smaps_number(places[1], "Rss:") <= 4, "what wasn't touched has been");
	expect(is_filled(places[0], PAGE, 1) && is_filled(places[1], PAGE, 2), "it holds something else");
	char *more = anonymous(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	smaps_flags(more, is);
	same("new memory is locked", count > 1 && arguments[1][0] != 'p', strstr(is, " lo") != NULL);
	if (strstr(was[1], " lf"))
		same("as it is touched", count > 1 && arguments[1][0] == 'o', strstr(is, " lf") != NULL);
	return report();
}

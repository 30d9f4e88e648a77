/* Sealed memory (mseal): what is in it, and that nobody can unmap, move, protect or empty it. */
// feature: mseal
#include "memory.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

int main(void) {
	char *places[3] = {anonymous(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE), anonymous(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED)};
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0600));
	must(ftruncate(file, 4 * PAGE));
	places[2] = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
	char was[3][128], is[128];
	for (int i = 0; i < 3; i++)
		fill(places[i], 4 * PAGE, i);
	must(mprotect(places[0], 4 * PAGE, PROT_READ));
	for (int i = 0; i < 3; i++) {
		spoil(continue;);
		must(syscall(SYS_mseal, places[i], 4 * PAGE, 0));
		smaps_flags(places[i], was[i]);
		expect(strstr(was[i], " sl") != NULL, "line 0: smaps doesn't tell what is sealed");
	}
	freeze_here();
	for (int i = 0; i < 3; i++) {
		smaps_flags(places[i], is);
		expect(!strcmp(was[i], is), "mapping %d: flags were %s, are %s", i, was[i], is);
		expect(is_filled(places[i], 4 * PAGE, i), "mapping %d holds something else", i);
		expect(mprotect(places[i], PAGE, PROT_NONE) == -1 && errno == EPERM, "mapping %d can be protected", i);
		expect(munmap(places[i], PAGE) == -1 && errno == EPERM, "mapping %d can be unmapped", i);
	}
	return report();
}

/* A vDSO that the program has moved, with the kernel's data before it. */
#include "memory.h"
#include <sys/auxv.h>

typedef int clock_gettime_(clockid_t, struct timespec *);

int main(void) {
	unsigned long first = 0, last = 0, start, end;
	char *maps = read_proc("/proc/self/maps");
	for (char *line = maps; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		char name[32] = "";
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %31s", &start, &end, name) != 3 || (strncmp(name, "[vvar", 5) && strcmp(name, "[vdso]")))
			continue;
		first = first ? first : start;
		last = end;
	}
	char *room = anonymous(last - first, PROT_NONE, MAP_PRIVATE), *to = room;
	must(munmap(room, last - first));
	unsigned long moved = 0;
	for (char *line = maps; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start >= first && end <= last) {
			must(mremap((void *)start, end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED, to + (start - first)));
			moved += end - start;
		}
	}
	same("line 0: bytes moved", last - first, moved);
	char *after = read_proc("/proc/self/maps");
	freeze_here();
	spoil(must(mremap(to + moved - PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to - (1 << 22))););
	same_maps(after, read_proc("/proc/self/maps"));
	char *code = to + (getauxval(AT_SYSINFO_EHDR) - first);
	expect(!memcmp(code, "\177ELF", 4), "the vDSO isn't where it was moved to");
	return report();
}

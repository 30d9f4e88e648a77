/* What /proc/self tells about this process's memory. */
#pragma once
#include "wait.h"

#define PAGE 4096ul

static inline char *anonymous(size_t size, int protection, int flags) {
	return must(mmap(NULL, size, protection, flags | MAP_ANONYMOUS, -1, 0));
}

/* Read a whole file of /proc into memory that no allocator knows. */
static inline char *read_proc(const char *path) {
	static char texts[4][1 << 20];
	static int turn;
	char *text = texts[turn++ % 4];
	size_t length = 0;
	int file = must(open(path, O_RDONLY | O_CLOEXEC));
	for (ssize_t got; (got = must(read(file, text + length, (1 << 20) - 1 - length))) > 0;)
		length += got;
	text[length] = 0;
	close(file);
	return text;
}

/* Find the line of maps or the block of smaps that starts at an address. */
static inline char *entry_of(char *text, const void *start) {
	char prefix[32];
	snprintf(prefix, sizeof prefix, "%08lx-", (unsigned long)start);
	char *found = strncmp(text, prefix, strlen(prefix)) ? NULL : text;
	for (char *line = text; !found && (line = strchr(line, '\n')); )
		if (!strncmp(++line, prefix, strlen(prefix)))
			found = line;
	return found;
}

/* Read a number of a mapping from smaps, or compare its flags: `field` ends with a colon. */
static inline long smaps_number(const void *start, const char *field) {
	char *entry = entry_of(read_proc("/proc/self/smaps"), start);
	char *found = entry ? strstr(entry, field) : NULL;
	return found ? atol(found + strlen(field)) : -1;
}

static inline void smaps_flags(const void *start, char into[128]) {
	char *entry = entry_of(read_proc("/proc/self/smaps"), start);
	char *found = entry ? strstr(entry, "VmFlags:") : NULL;
	snprintf(into, 128, "%.*s", found ? (int)strcspn(found, "\n") : 0, found ?: "");
}

/* Compare two texts of maps but for the inode numbers, which are the kernel's own; report the first line that differs. */
static inline void same_maps(char *before, char *after) {
	while (*before || *after) {
		int was = strcspn(before, "\n"), is = strcspn(after, "\n");
		int was_name = strcspn(before, "/["), is_name = strcspn(after, "/[");
		bool ok = !strncmp(before, after, strcspn(before, " ") + 15);
		was_name = was_name < was ? was_name : was;
		is_name = is_name < is ? is_name : is;
		if (!ok || was - was_name != is - is_name || strncmp(before + was_name, after + is_name, was - was_name)) {
			differs("mapping was %.*s, is %.*s", was, before, is, after);
			return;
		}
		before += was + !!before[was];
		after += is + !!after[is];
	}
}

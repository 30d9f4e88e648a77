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

struct mapping { unsigned long start, end, offset; char flags[8], device[8]; const char *name; int length; };

/* Read one mapping, and join those that follow it without a seam: the kernel merges them or not as it likes. */
static inline struct mapping next_mapping(const char **text) {
	struct mapping all = {0}, next;
	while (**text) {
		int name = 0;
		if (sscanf(*text, "%lx-%lx %7s %lx %7s %*d%n", &next.start, &next.end, next.flags, &next.offset, next.device, &name) != 5)
			break;
		next.name = *text + name + strspn(*text + name, " ");
		next.length = strcspn(next.name, "\n");
		bool seamless = all.end == next.start && !strcmp(all.flags, next.flags) && all.length == next.length
			&& !strncmp(all.name, next.name, all.length) && (!all.length || all.offset + (all.end - all.start) == next.offset);
		if (all.end && !seamless)
			break;
		if (!all.end)
			all = next;
		all.end = next.end;
		*text = next.name + next.length + !!next.name[next.length];
	}
	return all;
}

/* Compare two texts of maps but for inode numbers, which may be the kernel's own; report the first difference. */
static inline void same_maps(const char *before, const char *after) {
	while (*before || *after) {
		struct mapping was = next_mapping(&before), is = next_mapping(&after);
		if (was.start != is.start || was.end != is.end || strcmp(was.flags, is.flags) || was.offset != is.offset
			|| was.length != is.length || strncmp(was.name, is.name, was.length)) {
			differs("mapping was %lx-%lx %s %lx %.*s, is %lx-%lx %s %lx %.*s", was.start, was.end, was.flags, was.offset,
				was.length, was.name, is.start, is.end, is.flags, is.offset, is.length, is.name);
			return;
		}
	}
}

/* The mount table as text that a restore leaves as it is: sorted, without ids and devices. */
#pragma once
#include "lines.h"
#include <sys/mount.h>
#include <sys/vfs.h>

struct mounts {
	int count;
	char lines[128][1024];
};

static inline int by_text(const void *one, const void *other) { return strcmp(one, other); }

/* Name groups of mounts by the order in which they are met, not by the kernel's numbers. */
static inline int group(const char *tag) {
	static int known[128], count;
	int number = atoi(strchr(tag, ':') + 1);
	if (!strcmp(tag, "forget:0"))
		return count = 0;
	for (int i = 0; i < count; i++)
		if (known[i] == number)
			return i;
	known[count] = number;
	return count++;
}

static inline void read_mounts(struct mounts *into) {
	static char rows[128][1024];
	FILE *file = fopen("/proc/self/mountinfo", "r");
	int count = 0;
	for (char line[1024], *word, *rest; fgets(line, sizeof line, file); count++) {
		char tags[200] = "";
		strtok_r(line, " ", &rest), strtok_r(NULL, " ", &rest), strtok_r(NULL, " ", &rest);
		rows[count][0] = 0;
		for (int i = 0; i < 3; i++)
			sprintf(rows[count] + strlen(rows[count]), "%s ", strtok_r(NULL, " ", &rest));
		while ((word = strtok_r(NULL, " ", &rest)) && strcmp(word, "-"))
			sprintf(tags + strlen(tags), " %s", word);
		rest[strcspn(rest, "\n")] = 0;
		sprintf(rows[count] + strlen(rows[count]), "%s |%s", rest, tags);
	}
	fclose(file);
	qsort(rows, count, sizeof rows[0], by_text);
	group("forget:0");
	for (int i = 0; i < count; i++) {
		char *tags = strchr(rows[i], '|'), *rest;
		int length = sprintf(into->lines[i], "%.*s|", (int)(tags - rows[i]), rows[i]);
		for (char *word = strtok_r(tags + 1, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
			if (strchr(word, ':') && strncmp(word, "propagate_from", 14))
				length += sprintf(into->lines[i] + length, " %.6s:%d", word, group(word));
			else if (!strchr(word, ':'))
				length += sprintf(into->lines[i] + length, " %s", word);
	}
	into->count = count;
}

static inline void expect_same_mounts(const struct mounts *was, const struct mounts *is) {
	expect_same_lines(was->lines[0], was->count, is->lines[0], is->count, sizeof was->lines[0]);
}

/* What a process does: 'T' if it is stopped, 'Z' if it has ended, as /proc/PID/stat tells. */
#pragma once
#include "wait.h"

static inline char state(pid_t pid) {
	char path[64], text[512] = "", got = '?';
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int stat = must(open(path, O_RDONLY | O_CLOEXEC));
	if (read(stat, text, sizeof text - 1) > 0 && strrchr(text, ')'))
		got = strrchr(text, ')')[2];
	close(stat);
	return got;
}

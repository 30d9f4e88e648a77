/* Files that hold a short text. */
#pragma once
#include "wait.h"

static inline void put(const char *path, const char *text) {
	int file = must(open(path, O_WRONLY | O_CREAT, 0640));
	must(write(file, text, strlen(text)));
	close(file);
}

static inline void look(const char *path, const char *text) {
	char found[100] = "";
	int file = open(path, O_RDONLY);
	expect(file >= 0 && read(file, found, 99) >= 0 && !strcmp(found, text), "%s holds %s, not %s", path, found, text);
	close(file);
}

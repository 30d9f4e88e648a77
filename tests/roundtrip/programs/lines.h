/* Tables as sorted lines of text, to be compared. */
#pragma once
#include "wait.h"

/* Tell which lines have gone, and which are new; a line takes `width` bytes. */
static inline void expect_same_lines(const char *was, int count, const char *is, int count_now, int width) {
	for (int i = 0, k = 0; i < count || k < count_now;) {
		int order = i == count ? 1 : k == count_now ? -1 : strcmp(was + i * width, is + k * width);
		if (order < 0)
			differs("gone: %s", was + i * width);
		if (order > 0)
			differs("new: %s", is + k * width);
		i += order <= 0, k += order >= 0;
	}
}

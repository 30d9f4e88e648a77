/* Who is in which namespace: their numbers change, but not who has one in common with whom. */
#pragma once
#include "wait.h"

#define MOST 16
static struct place { char before[64], after[64]; int noted, checked; } *places;

static inline void await(int *what) {
	while (!__atomic_load_n(what, __ATOMIC_SEQ_CST))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static inline void look_up(const char *kind, char *link, int *done) {
	char path[64];
	snprintf(path, sizeof path, "/proc/thread-self/ns/%s", kind);
	ssize_t length = readlink(path, link, 63);
	link[length > 0 ? length : 0] = 0;
	__atomic_store_n(done, 1, __ATOMIC_SEQ_CST);
}

static inline void prepare_places(void) {
	places = must(mmap(NULL, MOST * sizeof *places, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

/* Tell where we are, before and after. */
static inline void note_place(int who, const char *kind) { look_up(kind, places[who].before, &places[who].noted); }
static inline void check_place(int who, const char *kind) { look_up(kind, places[who].after, &places[who].checked); }

static inline void compare_places(const char *kind, int count) {
	for (int i = 0; i < count; i++) {
		await(&places[i].checked);
		expect(*places[i].after, "%d is in no %s namespace", i, kind);
		for (int j = 0; j < i; j++) {
			bool was = !strcmp(places[i].before, places[j].before), is = !strcmp(places[i].after, places[j].after);
			expect(was == is, "%d and %d %s in one %s namespace", j, i, is ? "are" : "aren't any more", kind);
		}
	}
}

static inline void enter(pid_t who, const char *kind) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", who, kind);
	int namespace = must(open(path, O_RDONLY | O_CLOEXEC));
	must(setns(namespace, 0));
	close(namespace);
}

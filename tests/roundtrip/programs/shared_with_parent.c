/* Pages that children share with their parent since fork, where they have written to little, given some back, and made memory longer or shorter: still shared. */
#include "memory.h"

enum { CHILDREN = 2, MIB = 1 << 20, SIZE = 16 * MIB, OTHER = 8 * MIB, PLACE = 64 * MIB };

static struct { long kib[CHILDREN + 1][2]; } *counts;
static char *memory, *other;

/* One more, so that 0 is not counted yet. */
static long shared(void) {
	return 1 + smaps_number(memory, "Shared_Clean:") + smaps_number(memory, "Shared_Dirty:") +
	       smaps_number(other, "Shared_Clean:") + smaps_number(other, "Shared_Dirty:");
}

static bool is_zero(const char *at, size_t size) { return !*at && !memcmp(at, at + 1, size - 1); }

static bool is_right(int child) {
	for (int mib = 0; mib < SIZE / MIB; mib++) {
		char *at = memory + mib * MIB;
		bool empty = child == 0 && mib == 5;
		if (empty ? !is_zero(at, MIB) : !is_filled(at, MIB, child < CHILDREN && mib == 3 + child ? 100 + mib : mib))
			return differs("process %d: MiB %d holds something else", child, mib), false;
	}
	if (!is_filled(other, OTHER - 2 * MIB, 50))
		return differs("process %d: the other memory holds something else", child), false;
	if (child != 0)
		return true;
	return (is_zero(other + OTHER, MIB) && is_filled(other + OTHER + MIB, MIB / 4, 60) && is_zero(other + OTHER + MIB + MIB / 4, MIB)) ||
	       (differs("what has been made longer holds something else"), false);
}

int main(void) {
	counts = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	char *place = anonymous(PLACE, PROT_NONE, MAP_PRIVATE), name[16];
	memory = must(mmap(place + 3 * MIB, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	other = must(mmap(place + SIZE + 8 * MIB, OTHER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	for (int mib = 0; mib < SIZE / MIB; mib++)
		fill(memory + mib * MIB, MIB, mib);
	fill(other, OTHER - 2 * MIB, 50);
	fill(other + OTHER - 2 * MIB, 2 * MIB, 51);
	must(munmap(other + OTHER, 8 * MIB)); /* which makes room for more of it */
	pid_t children[CHILDREN];
	for (int child = 0; child < CHILDREN; child++) {
		if ((children[child] = must(fork())))
			continue;
		fill(memory + (3 + child) * MIB, MIB, 103 + child);
		if (child == 0) {
			must(madvise(memory + 5 * MIB, MIB, MADV_DONTNEED));
			expect(must(mremap(other, OTHER, OTHER + 4 * MIB, 0)) == other, "it is elsewhere");
			fill(other + OTHER + MIB, MIB / 4, 60);
		} else
			must(munmap(other + OTHER - 2 * MIB, 2 * MIB));
		snprintf(name, sizeof name, "made%d", child);
		say(name);
		wait_for("all");
		counts->kib[child][0] = shared();
		snprintf(name, sizeof name, "counted%d", child);
		say(name);
		wait_for("check");
		spoil(fill(memory + 8 * MIB, 8 * MIB, 7););
		counts->kib[child][1] = shared();
		wait_for("recounted");
		_exit(!is_right(child));
	}
	for (int child = 0; child < CHILDREN; child++) {
		snprintf(name, sizeof name, "made%d", child);
		wait_for(name);
	}
	say("all");
	counts->kib[CHILDREN][0] = shared();
	for (int child = 0; child < CHILDREN; child++) {
		snprintf(name, sizeof name, "counted%d", child);
		wait_for(name);
	}
	freeze_here();
	counts->kib[CHILDREN][1] = shared();
	for (int child = 0; child <= CHILDREN; child++) {
		while (!counts->kib[child][1])
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		long was = counts->kib[child][0], is = counts->kib[child][1];
		expect(is * 20 >= was * 19 && was * 20 >= is * 19, "process %d shared %ld kB, and now %ld", child, was, is);
	}
	say("recounted");
	for (int child = 0; child < CHILDREN; child++)
		join(children[child]);
	is_right(CHILDREN);
	return report();
}

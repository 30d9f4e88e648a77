/* Pages that children share with their parent since fork, and with each other since the parent has written to them: still shared. */
// arguments: small | huge | file
#include "memory.h"

enum { CHILDREN = 3, MIB = 1 << 20, SIZE = 32 * MIB };

static struct { long kib[CHILDREN + 1][2]; } *counts;

/* One more, so that 0 is not counted yet. */
static long shared(char *memory) { return 1 + smaps_number(memory, "Shared_Clean:") + smaps_number(memory, "Shared_Dirty:"); }

static bool is_right(char *memory, int child) {
	for (int mib = 0; mib < SIZE / MIB; mib++) {
		/* The parent writes to one more before each fork, and to others at last, as the middle child does; each child to its own. */
		bool late = mib >= 20 && mib < 24;
		int seed = mib <= child || (child == CHILDREN && late) ? 100 + mib : child < CHILDREN && mib == 10 + child ? 200 + child : child == 1 && late ? 300 + mib : mib;
		if (!is_filled(memory + mib * MIB, MIB, seed))
			return differs("process %d: MiB %d holds something else", child, mib), false;
	}
	return true;
}

int main(int count, char **arguments) {
	counts = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	char kind = count > 1 ? arguments[1][0] : 's', *memory, name[16];
	if (kind == 'f') {
		int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0600));
		must(ftruncate(file, SIZE));
		memory = must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
	} else {
		memory = anonymous(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		must(madvise(memory, SIZE, kind == 'h' ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
	}
	pid_t children[CHILDREN];
	for (int mib = 0; mib < SIZE / MIB; mib++)
		fill(memory + mib * MIB, MIB, mib);
	for (int child = 0; child < CHILDREN; child++) {
		fill(memory + child * MIB, MIB, 100 + child);
		snprintf(name, sizeof name, "born%d", child);
		if ((children[child] = must(fork()))) {
			wait_for(name);
			continue;
		}
		fill(memory + (10 + child) * MIB, MIB, 200 + child);
		for (int mib = 20; child == 1 && mib < 24; mib++)
			fill(memory + mib * MIB, MIB, 300 + mib);
		say(name);
		wait_for("all");
		counts->kib[child][0] = shared(memory);
		snprintf(name, sizeof name, "counted%d", child);
		say(name);
		wait_for("check");
		spoil(fill(memory + 24 * MIB, 8 * MIB, 7););
		counts->kib[child][1] = shared(memory);
		wait_for("recounted");
		_exit(!is_right(memory, child));
	}
	fill(memory + 3 * MIB, MIB, 103);
	for (int mib = 20; mib < 24; mib++)
		fill(memory + mib * MIB, MIB, 100 + mib);
	say("all");
	counts->kib[CHILDREN][0] = shared(memory);
	for (int child = 0; child < CHILDREN; child++) {
		snprintf(name, sizeof name, "counted%d", child);
		wait_for(name);
	}
	freeze_here();
	counts->kib[CHILDREN][1] = shared(memory);
	for (int child = 0; child <= CHILDREN; child++) {
		while (!counts->kib[child][1])
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		long was = counts->kib[child][0], is = counts->kib[child][1];
		expect(is * 20 >= was * 19 && was * 20 >= is * 19, "process %d shared %ld kB, and now %ld", child, was, is);
	}
	say("recounted");
	for (int child = 0; child < CHILDREN; child++)
		join(children[child]);
	is_right(memory, CHILDREN);
	return report();
}

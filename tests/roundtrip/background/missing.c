/* What a program may do with memory before it is there. The argument says what this one does. */
#include "../programs/memory.h"
#include <sys/file.h>

enum { PAGES = 1024 };

static char *memory;

static void check(const char *who, const char *at, int from, int to) {
	for (int i = from; i < to; i++)
		if (!is_filled(at + (i - from) * PAGE, PAGE, i)) {
			differs("%s: page %d holds something else", who, i);
			return;
		}
}

static void check_zeros(const char *who, const char *at, int pages) {
	for (size_t i = 0; i < pages * PAGE; i++)
		if (at[i]) {
			differs("%s: page %zu isn't zero", who, i / PAGE);
			return;
		}
}

static void forks(void) {
	for (int turn = 0; turn < 3; turn++) {
		pid_t child = must(fork());
		if (child == 0) {
			check("child", memory, 0, PAGES);
			pid_t grandchild = must(fork());
			if (grandchild == 0) {
				check("grandchild", memory, 0, PAGES);
				_exit(0);
			}
			join(grandchild);
			_exit(0);
		}
		memset(memory + turn * PAGE, 0, PAGE); /* no business of the child's */
		join(child);
		fill(memory + turn * PAGE, PAGE, turn);
	}
	check("parent", memory, 0, PAGES);
}

static void forks_often(void) {
	for (int i = 0; i < 300; i++) {
		pid_t child = must(fork());
		if (child == 0)
			_exit(0);
		join(child);
	}
	say("forked");
	wait_for("on");
	check("parent", memory, 0, PAGES);
}

/* Children of a child that still lacks its memory, while their parent goes away. */
static void forks_and_leaves(void) {
	pid_t child = must(fork());
	if (child == 0) {
		pid_t grandchild = must(fork());
		if (grandchild == 0) {
			check("orphan", memory, 0, PAGES);
			say("orphan-done");
			_exit(0);
		}
		_exit(0);
	}
	join(child);
	wait_for("orphan-done");
	check("parent", memory, 0, PAGES);
}

static void moves(void) {
	size_t half = PAGES / 2 * PAGE;
	char *place = anonymous(4 * half, PROT_NONE, MAP_PRIVATE);
	char *moved = must(mremap(memory + half, half, 2 * half, MREMAP_MAYMOVE | MREMAP_FIXED, place));
	check("moved", moved, PAGES / 2, PAGES);
	check_zeros("grown", moved + half, PAGES / 2);
	char *again = must(mremap(moved, 2 * half, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + half));
	check("moved back", again, PAGES / 2, PAGES / 2 + 1);
	check("what stayed", memory, 0, PAGES / 2);
}

static void moves_unseen(void) {
	char *place = anonymous(PAGES * PAGE, PROT_NONE, MAP_PRIVATE);
	char *moved = must(mremap(memory, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place));
	char *other = must(mmap(memory, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	check_zeros("where it had been", other, PAGES);
	check("moved", moved, 0, PAGES);
}

static void unmaps(void) {
	must(munmap(memory + 100 * PAGE, 100 * PAGE));
	char *fresh = must(mmap(memory + 100 * PAGE, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	check_zeros("fresh", fresh, 100);
	char *over = must(mmap(memory + 300 * PAGE, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	check_zeros("mapped over", over, 100);
	check("before", memory, 0, 100);
	check("between", memory + 200 * PAGE, 200, 300);
	check("behind", memory + 400 * PAGE, 400, PAGES);
}

static void regrows(void) {
	must(munmap(memory + 300 * PAGE, (PAGES - 300) * PAGE));
	char *grown = must(mremap(memory, 300 * PAGE, 400 * PAGE, 0));
	check("before", grown, 0, 300);
	check_zeros("grown", grown + 300 * PAGE, 100);
	must(mremap(memory, 400 * PAGE, 100 * PAGE, 0));
	must(mremap(memory, 100 * PAGE, 400 * PAGE, 0));
	check("before", memory, 0, 100);
	check_zeros("grown again", memory + 100 * PAGE, 300);
}

static void drops(void) {
	must(madvise(memory + 10 * PAGE, 300 * PAGE, MADV_DONTNEED));
	check_zeros("dropped", memory + 10 * PAGE, 300);
	check("before", memory, 0, 10);
	check("behind", memory + 310 * PAGE, 310, PAGES);
}

static void locks(void) {
	unsigned char there[PAGES];
	must(mlock(memory, PAGES * PAGE));
	must(mincore(memory, PAGES * PAGE, there));
	for (int i = 0; i < PAGES; i++)
		expect(there[i] & 1, "page %d is locked, and not there", i);
	check("locked", memory, 0, PAGES);
}

static void writes(void) {
	int file = must(open(in_work("copy"), O_RDWR | O_CREAT, 0600));
	for (size_t done = 0; done < PAGES * PAGE;)
		done += must(write(file, memory + done, PAGES * PAGE - done));
	char *copy = must(mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, file, 0));
	check("written", copy, 0, PAGES);
}

static void protects(void) {
	for (int i = 0; i < PAGES; i += 3)
		must(mprotect(memory + i * PAGE, PAGE, PROT_READ));
	must(mprotect(memory + 512 * PAGE, 100 * PAGE, PROT_NONE));
	check("protected", memory, 0, 512);
	check("protected", memory + 612 * PAGE, 612, PAGES);
	must(mprotect(memory + 512 * PAGE, 100 * PAGE, PROT_READ));
	check("hidden for a while", memory + 512 * PAGE, 512, 612);
}

static void *checks_from_behind(void *argument) {
	for (int i = PAGES - 1 - (long)argument; i >= 0; i -= 2)
		check("thread", memory + i * PAGE, i, i + 1);
	return NULL;
}

static void threads(void) {
	pthread_t all[6];
	for (long i = 0; i < 6; i++)
		must(pthread_create(&all[i], NULL, checks_from_behind, (void *)i));
	for (int turn = 0; turn < 20; turn++) {
		pid_t child = must(fork());
		if (child == 0) {
			check("child", memory + turn * 50 * PAGE, turn * 50, turn * 50 + 10);
			_exit(0);
		}
		join(child);
	}
	for (int i = 0; i < 6; i++)
		must(pthread_join(all[i], NULL));
}

static char *own_arguments[] = {"missing", "executed", NULL};

static void executes(void) { must(execv("/proc/self/exe", own_arguments)); }

static void leaves(void) { exit(report()); }

static const struct { const char *name; void (*act)(void); } acts[] = {
	{"forks", forks}, {"forks-and-leaves", forks_and_leaves}, {"moves", moves}, {"moves-unseen", moves_unseen},
	{"unmaps", unmaps}, {"regrows", regrows}, {"drops", drops}, {"locks", locks}, {"writes", writes}, {"protects", protects}, {"threads", threads},
	{"executes", executes}, {"leaves", leaves},
	{"forks-often", forks_often},
};

int main(int count, char **arguments) {
	if (count > 1 && !strcmp(arguments[1], "executed"))
		return report();
	memory = anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (int i = 0; i < PAGES; i++)
		fill(memory + i * PAGE, PAGE, i);
	must(flock(must(open(in_work("locked"), O_RDONLY | O_CREAT, 0600)), LOCK_EX));
	freeze_here();
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
		if (!strcmp(acts[i].name, arguments[1])) {
			acts[i].act();
			return report();
		}
	return 3;
}

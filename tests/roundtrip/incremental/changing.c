/* Memory that changes step by step, in every way that memory can. What it must hold after a step follows from its number
   alone, so nothing that is restored can vouch for something else. The link /work/goal says up to which step to go; to
   read it takes no descriptor. With an argument, System V shared memory changes as well. */
#include "../programs/memory.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { PAGES = 2048, FEW = 64, SHARED = 1024 };

static int step, grows;
static char *many, *moving, *dropped, *reused, *hidden, *file, *shared, *segment;
static pid_t child;

static bool is_changed(int page, int at) { return (page * 2654435761u + at * 40503u) % 97 == 0; }

static uint64_t seed_of(int page, int at) {
	while (at > 0 && !is_changed(page, at))
		at--;
	return page + at * 100000ul;
}

static char *place_at(int at) { return (char *)0x200000000000 + (at % 2) * (4l << 30); }

static void check_many(const char *who, const char *memory, int at) {
	for (int i = 0; i < PAGES; i++)
		if (!is_filled(memory + i * PAGE, PAGE, seed_of(i, at))) {
			differs("%s: page %d isn't as of step %d", who, i, at);
			return;
		}
}

/* Step 2 has the last page, most of which is behind the end of the System V memory. */
static int shared_page(int at) { return (SHARED - 75 + at * 37) % SHARED; }

static void write_shared(char *memory, int at) { fill(memory + shared_page(at) * PAGE, PAGE, 11000 + at); }

static void check_shared(const char *what, const char *memory) {
	for (int i = 0; i < SHARED; i++) {
		int at = step;
		while (at > 0 && shared_page(at) != i)
			at--;
		expect(is_filled(memory + i * PAGE, PAGE, at ? 11000 + at : 14000 + i), "%s: page %d isn't as of step %d", what, i, at);
	}
}

static void check_growing(void) {
	struct stat found;
	must(fstat(grows, &found));
	expect(found.st_size == (off_t)((SHARED + step + 1) * PAGE), "the memfd has another size, %ld", (long)found.st_size);
	for (int i = 0; i <= SHARED + step; i++) {
		char page[PAGE];
		expect(pread(grows, page, PAGE, i * PAGE) == PAGE, "the memfd can't be read");
		expect(is_filled(page, PAGE, i > SHARED ? 13000 + i - SHARED : 15000 + i), "the memfd's page %d", i);
	}
}

static void change(void) {
	step++;
	for (int i = 0; i < PAGES; i++)
		if (is_changed(i, step))
			fill(many + i * PAGE, PAGE, seed_of(i, step));
	/* What was there goes elsewhere, and something else comes in its place. */
	char *place = place_at(step);
	munmap(place, FEW * PAGE);
	must(mremap(moving, FEW * PAGE, FEW * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place));
	must(mmap(moving, FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	fill(moving, FEW * PAGE, 7000 + step);
	moving = place;
	must(madvise(dropped, FEW / 2 * PAGE, MADV_DONTNEED));
	fill(dropped, FEW / 4 * PAGE, 8000 + step);
	must(munmap(reused, FEW * PAGE));
	must(mmap(reused, FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	fill(reused + step % FEW * PAGE, PAGE, 9000 + step);
	must(mprotect(file, FEW * PAGE, PROT_READ | PROT_WRITE));
	fill(file + step % FEW * PAGE, PAGE, 10000 + step);
	must(mprotect(file, FEW * PAGE, PROT_READ));
	must(mprotect(hidden, FEW * PAGE, PROT_READ | PROT_WRITE));
	fill(hidden + step % FEW * PAGE, PAGE, 20000 + step);
	must(mprotect(hidden, FEW * PAGE, PROT_NONE));
	write_shared(shared, step);
	if (segment)
		write_shared(segment, step);
	char page[PAGE];
	fill(page, PAGE, 13000 + step);
	expect(pwrite(grows, page, PAGE, (SHARED + step) * PAGE) == PAGE, "a memfd doesn't grow");
	if (step == 1) {
		child = must(fork());
		if (child == 0) {
			fill(many, PAGE, 12000);
			say("forked");
			wait_for("check-child");
			expect(is_filled(many, PAGE, 12000), "child: its own page is another's");
			for (int i = 1; i < PAGES; i++)
				if (!is_filled(many + i * PAGE, PAGE, seed_of(i, 1))) {
					differs("child: page %d isn't as of the fork", i);
					break;
				}
			_exit(0);
		}
		wait_for("forked");
	}
}

static bool is_zero(const char *at, size_t size) {
	for (size_t i = 0; i < size; i++)
		if (at[i])
			return false;
	return true;
}

static void check(void) {
	check_many("memory", many, step);
	expect(is_filled(moving, FEW * PAGE, 6000), "what moves has not come along");
	if (step) {
		expect(is_filled(place_at(step - 1), step > 1 ? FEW * PAGE : 0, 7000 + step), "where it was is something else");
		expect(is_filled(dropped, FEW / 4 * PAGE, 8000 + step), "what was written after it was dropped");
		expect(is_zero(dropped + FEW / 4 * PAGE, FEW / 4 * PAGE), "what was dropped isn't zero");
		for (int i = 0; i < FEW; i++)
			expect(i == step % FEW ? is_filled(reused + i * PAGE, PAGE, 9000 + step) : is_zero(reused + i * PAGE, PAGE),
				"page %d of a mapping in another's place", i);
		for (int at = 1; at <= step; at++)
			expect(is_filled(file + at % FEW * PAGE, PAGE, 10000 + at), "the page of a file written at step %d", at);
	}
	must(mprotect(hidden, FEW * PAGE, PROT_READ));
	for (int at = 0; at <= step; at++)
		expect(is_filled(hidden + at % FEW * PAGE, PAGE, 20000 + at), "the hidden page written at step %d", at);
	check_shared("shared memory", shared);
	if (segment)
		check_shared("System V shared memory", segment);
	check_growing();
	expect(is_filled(dropped + FEW / 2 * PAGE, FEW / 2 * PAGE, 8000 + FEW / 2), "what nobody dropped");
}

static int goal(void) {
	char text[16] = "";
	return readlink(in_work("goal"), text, sizeof text - 1) > 0 ? atoi(text) : 0;
}

int main(int count, char **arguments) {
	(void)arguments;
	many = anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (int i = 0; i < PAGES; i++)
		fill(many + i * PAGE, PAGE, seed_of(i, 0));
	moving = anonymous(FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(moving, FEW * PAGE, 6000);
	dropped = anonymous(FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(dropped, FEW / 2 * PAGE, 8000);
	fill(dropped + FEW / 2 * PAGE, FEW / 2 * PAGE, 8000 + FEW / 2);
	reused = anonymous(FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	hidden = anonymous(FEW * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(hidden, PAGE, 20000);
	must(mprotect(hidden, FEW * PAGE, PROT_NONE));
	int program = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	file = must(mmap(NULL, FEW * PAGE, PROT_READ, MAP_PRIVATE, program, 0));
	close(program);
	shared = anonymous(SHARED * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	grows = must(memfd_create("grows", MFD_CLOEXEC));
	must(ftruncate(grows, (SHARED + 1) * PAGE));
	if (count > 1)
		segment = must(shmat(must(shmget(IPC_PRIVATE, SHARED * PAGE - 4000, 0600)), NULL, 0));
	for (int i = 0; i <= SHARED; i++) {
		char page[PAGE];
		fill(page, PAGE, 15000 + i);
		expect(pwrite(grows, page, PAGE, i * PAGE) == PAGE, "a memfd can't be written");
		if (i < SHARED)
			fill(shared + i * PAGE, PAGE, 14000 + i);
		if (segment && i < SHARED)
			fill(segment + i * PAGE, PAGE, 14000 + i);
	}
	for (;;) {
		if (step < goal()) {
			change();
			continue;
		}
		char name[16];
		snprintf(name, sizeof name, "at%d", step);
		say(name);
		if (access(in_work("check"), F_OK) == 0)
			break;
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
	expect(step == goal(), "this is step %d", step);
	check();
	if (child) {
		say("check-child");
		join(child);
	}
	return report();
}

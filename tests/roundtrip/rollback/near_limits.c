/* Memory up to a limit, some of which is elsewhere by the time of a rollback; so is a child's, who has ended by then. */
#include "../programs/memory.h"
#include <sys/resource.h>

enum { MUCH = 64 * PAGE, HEAP = 24 * PAGE };
static char *memory, *heap, *other;
static struct rlimit limit;
static int which;
static bool is_hard;
static const char *counted;
static long much, spare;

static long used(void) {
	return atol(strstr(read_proc("/proc/self/status"), counted) + strlen(counted)) << 10;
}

static bool has_room(void) {
	void *more = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return more != MAP_FAILED && munmap(more, PAGE) == 0;
}

static void use_up(int seed) {
	heap = must(sbrk(HEAP));
	fill(heap, HEAP, seed);
	memory = anonymous(MUCH, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(memory, MUCH, seed + 1);
	if (which == RLIMIT_MEMLOCK) {
		must(mlock(memory, MUCH));
		must(mlock(heap, HEAP));
		must(mlockall(MCL_FUTURE));
	}
	must(getrlimit(which, &limit));
	much = used();
	limit.rlim_cur = much + spare;
	if (is_hard)
		limit.rlim_max = limit.rlim_cur;
	must(setrlimit(which, &limit));
	expect(has_room() == !!spare, "there is room before, or none");
}

static void change(void) {
	must(munmap(memory, MUCH));
	must(sbrk(-HEAP));
	other = anonymous(HEAP + MUCH, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	memset(other, 7, HEAP + MUCH);
}

static void check(int seed) {
	struct rlimit is;
	expect(!other, "it is not set back");
	if (!other) {
		expect(is_filled(heap, HEAP, seed), "the heap holds something else");
		expect(is_filled(memory, MUCH, seed + 1), "memory holds something else");
	}
	same("used", much, used());
	must(getrlimit(which, &is));
	expect(is.rlim_cur == limit.rlim_cur && is.rlim_max == limit.rlim_max, "the limit was %ld %ld, is %ld %ld", limit.rlim_cur,
	       limit.rlim_max, is.rlim_cur, is.rlim_max);
	expect(has_room() == !!spare, "there is room since, or none");
	is.rlim_cur = is.rlim_max;
	must(setrlimit(which, &is));
	expect(has_room(), "the limit can't be raised");
}

int main(int count, char **arguments) {
	spare = count > 2 ? 1 << 20 : 0; /* too little for what it takes to make a process again */
	is_hard = count > 2 && arguments[2][0] == 'h';
	which = arguments[1][0] == 's' ? RLIMIT_AS : arguments[1][0] == 'd' ? RLIMIT_DATA : RLIMIT_MEMLOCK;
	counted = arguments[1][0] == 's' ? "VmSize:" : arguments[1][0] == 'd' ? "VmData:" : "VmLck:";
	pid_t child = must(fork());
	if (child == 0) {
		use_up(10);
		say("child");
		while (access(in_work("check"), F_OK) != 0) {
			if (access(in_work("change"), F_OK) == 0)
				_exit(0);
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		}
		check(10);
		_exit(0);
	}
	use_up(0);
	wait_for("child");
	say("ready");
	while (access(in_work("check"), F_OK) != 0) {
		if (access(in_work("change"), F_OK) == 0 && access(in_work("changed"), F_OK) != 0) {
			join(child);
			change();
			say("changed");
		}
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	join(child);
	check(0);
	return report();
}

/* Memory up to a limit: of addresses (RLIMIT_AS), of data (RLIMIT_DATA), of what is locked (RLIMIT_MEMLOCK); lowered since, or a hard one. */
// arguments: space | data | locked | lowered | hard
// capabilities: CAP_SETUID
#include "memory.h"
#include <sys/resource.h>

enum { MUCH = 16 * PAGE, LENT = 17 * PAGE }; /* what is lent for a freeze has just room below the hard one */

static const struct kind { const char *name, *counted; int resource; } KINDS[] = {
	{"space", "VmSize:", RLIMIT_AS},
	{"data", "VmData:", RLIMIT_DATA},
	{"locked", "VmLck:", RLIMIT_MEMLOCK},
	{"lowered", "VmSize:", RLIMIT_AS},
	{"hard", "VmSize:", RLIMIT_AS},
};

static rlim_t used(const char *counted) {
	return atol(strstr(read_proc("/proc/self/status"), counted) + strlen(counted)) << 10;
}

static bool has_room(void) {
	void *more = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return more != MAP_FAILED && munmap(more, PAGE) == 0;
}

/* Use all up, as root or another user, and look after the freeze whether it is so still. */
static void use_up(const struct kind *kind, int user) {
	struct rlimit was, is;
	bool is_hard = !strcmp(kind->name, "hard"), is_lowered = !strcmp(kind->name, "lowered");
	char *memory = anonymous(MUCH, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(memory, MUCH, user);
	must(setresuid(user, user, user));
	if (kind->resource == RLIMIT_MEMLOCK) {
		must(mlock(memory, MUCH));
		must(mlockall(MCL_FUTURE));
	}
	rlim_t much = used(kind->counted);
	must(getrlimit(kind->resource, &was));
	was.rlim_cur = is_lowered ? 4 * PAGE : is_hard ? much + LENT : much;
	if (is_hard)
		was.rlim_max = was.rlim_cur;
	must(setrlimit(kind->resource, &was));
	same("room before", is_hard, has_room());
	if (user) {
		say("other");
		wait_for("check");
	} else {
		wait_for("other");
		freeze_here();
		spoil(must(munmap(memory, PAGE)););
	}
	same("used", much, used(kind->counted));
	same("room since", is_hard, has_room());
	must(getrlimit(kind->resource, &is));
	expect(is.rlim_cur == was.rlim_cur && is.rlim_max == was.rlim_max, "the limit was %ld %ld, is %ld %ld", was.rlim_cur,
	       was.rlim_max, is.rlim_cur, is.rlim_max);
	spoil(return;);
	expect(is_filled(memory, MUCH, user), "memory holds something else");
	is.rlim_cur = is.rlim_max;
	must(setrlimit(kind->resource, &is));
	expect(has_room(), "the limit can't be raised");
}

int main(int count, char **arguments) {
	const struct kind *kind = KINDS;
	while (count > 1 && strcmp(kind->name, arguments[1]))
		kind++;
	pid_t child = must(fork());
	use_up(kind, child ? 0 : 4321);
	if (!child)
		return 0;
	join(child);
	return report();
}

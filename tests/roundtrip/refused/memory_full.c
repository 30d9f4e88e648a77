/* Memory up to a hard limit, or as many mappings as a process may have. */
// arguments: space | data | locked | mappings
#include "../programs/memory.h"
#include <sys/resource.h>

static void use_up(int resource, const char *counted) {
	struct rlimit limit;
	limit.rlim_cur = limit.rlim_max = atol(strstr(read_proc("/proc/self/status"), counted) + strlen(counted)) << 10;
	must(setrlimit(resource, &limit));
}

int main(__attribute__((unused)) int count, char **arguments) {
	switch (arguments[1][0]) {
	case 's':
		use_up(RLIMIT_AS, "VmSize:");
		break;
	case 'd':
		use_up(RLIMIT_DATA, "VmData:");
		break;
	case 'l':
		must(mlockall(MCL_FUTURE));
		use_up(RLIMIT_MEMLOCK, "VmLck:");
		break;
	default: /* neighbours don't become one */
		for (int i = 0; mmap(NULL, PAGE, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED; i++);
	}
	expect(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "there is room");
	freeze_here();
	return report();
}

/* Memory that nobody else can read, system calls that become signals, or a vDSO without its data. */
// arguments: secret | dispatch | vdso
#include "../programs/wait.h"
#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector; /* SYSCALL_DISPATCH_FILTER_ALLOW */

int main(int count, char **arguments) {
	if (count > 1 && arguments[1][0] == 's') {
		int file = must(syscall(SYS_memfd_secret, O_CLOEXEC));
		must(ftruncate(file, 4096));
		char *memory = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
		memory[0] = 1;
		must(fcntl(file, F_DUPFD, 77));
		close(file);
	} else if (count > 1 && arguments[1][0] == 'v') {
		unsigned long start = 0, end = 0;
		char line[256], *found = NULL;
		FILE *maps = fopen("/proc/self/maps", "r");
		while (!found && fgets(line, sizeof line, maps))
			found = strstr(line, "[vvar]");
		fclose(maps);
		must(found && sscanf(line, "%lx-%lx", &start, &end) == 2 ? 0 : -1);
		must(munmap((void *)start, end - start));
	} else
		must(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector));
	freeze_here();
	return report();
}

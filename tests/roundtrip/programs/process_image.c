/* What /proc/PID tells of a program: its file, auxiliary vector, arguments (also changed ones), environment; and oom_score_adj. */
#include "wait.h"

extern char **environ;

static size_t slurp(const char *path, char into[8192]) {
	int file = must(open(path, O_RDONLY));
	size_t length = 0;
	for (ssize_t got; (got = must(read(file, into + length, 8192 - length))) > 0;)
		length += got;
	close(file);
	return length;
}

static const char *files[] = {"/proc/self/auxv", "/proc/self/cmdline", "/proc/self/environ", "/proc/self/oom_score_adj",
	"/proc/self/personality", "/proc/self/coredump_filter"};
enum { FILES = sizeof files / sizeof *files };

int main(int count, char **arguments) {
	static char was[FILES][8192], is[8192], exe[2][512];
	size_t lengths[FILES], length;
	memset(arguments[0], 'w', strlen(arguments[0]) - 1); /* a changed title */
	environ[0][0] = '!';
	int adjust = must(open("/proc/self/oom_score_adj", O_WRONLY)), filter = must(open("/proc/self/coredump_filter", O_WRONLY));
	expect(write(adjust, "321", 3) == 3 && write(filter, "0x17", 4) == 4, "nothing written");
	close(adjust), close(filter);
	must(syscall(SYS_personality, 0x0040000)); /* ADDR_NO_RANDOMIZE */
	for (int i = 0; i < FILES; i++)
		lengths[i] = slurp(files[i], was[i]);
	must(readlink("/proc/self/exe", exe[0], 511));

	freeze_here();
	spoil(memset(arguments[0], 'x', 3););

	for (int i = 0; i < FILES; i++) {
		length = slurp(files[i], is);
		expect(length == lengths[i] && !memcmp(was[i], is, length), "%s was %.200s, is %.200s", files[i], was[i], is);
	}
	must(readlink("/proc/self/exe", exe[1], 511));
	expect(!strcmp(exe[0], exe[1]), "exe was %s, is %s", exe[0], exe[1]);
	same("the number of arguments", 1, count);
	return report();
}

// Has used up its address space by a soft limit, as the user that it is told; says the limits, then how they are in the end.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	static char status[4096];
	struct rlimit limit;
	if (count != 2 || setresuid(atoi(arguments[1]), atoi(arguments[1]), atoi(arguments[1])))
		return 1;
	setvbuf(stdout, NULL, _IONBF, 0);
	fread(status, 1, sizeof status - 1, fopen("/proc/self/status", "r"));
	getrlimit(RLIMIT_AS, &limit);
	limit.rlim_cur = atol(strstr(status, "VmSize:") + 7) << 10;
	if (setrlimit(RLIMIT_AS, &limit))
		return 1;
	printf("ready\n");
	if (getchar() != EOF)
		printf("went on\n");
	return getchar();
}

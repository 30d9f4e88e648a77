/* 32 MiB that are written once; ends with status 7 on SIGTERM, or 1 if something has changed. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WORDS (32l << 20) / sizeof(unsigned long)

int main(void)
{
	unsigned long *memory = malloc(WORDS * sizeof *memory), i;
	sigset_t set;
	int signal;

	for (i = 0; i < WORDS; i++)
		memory[i] = i * 2654435761u;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fclose(fopen("/work/ready", "w"));
	sigwait(&set, &signal);
	for (i = 0; i < WORDS; i++)
		if (memory[i] != i * 2654435761u)
			return 1;
	return 7;
}

// Three processes of four threads; each thread counts, and one goes on making new processes.
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long counters[4];

static void *count(void *counter)
{
	for (;;) {
		++*(volatile long *)counter;
		usleep(500);
	}
	return NULL;
}

static void *fork_on(void *counter)
{
	for (;;) {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		waitpid(child, NULL, 0);
		++*(volatile long *)counter;
	}
	return NULL;
}

int main(void)
{
	pthread_t thread;
	int first = 1, ready[2];
	char byte = 0;
	if (pipe(ready) != 0)
		return 1;
	for (int i = 0; i < 2 && first; i++)
		first = fork() != 0;
	for (int i = 1; i < 4; i++)
		pthread_create(&thread, NULL, first && i == 3 ? fork_on : count, (void *)&counters[i]);
	if (!first && write(ready[1], &byte, 1) != 1)
		return 1;
	if (first) {
		for (int i = 0; i < 2; i++)
			if (read(ready[0], &byte, 1) != 1)
				return 1;
		printf("%p\n", (void *)counters);
		fflush(stdout);
	}
	count((void *)counters);
}

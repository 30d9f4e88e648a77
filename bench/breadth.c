// Holds so many descriptors of mixed kinds, processes, mappings and threads, evenly spread; says that it does, and waits to be killed.
// SIGUSR1 makes it check that all its processes, and threads of the first, are still there.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 16384, PAGE = 4096 };

// Open one more descriptor or two; returns how many.
static int open_one(int kind, const sigset_t *none)
{
	int two[2], one;
	switch (kind % 8) {
	case 0: return pipe(two) ? -1 : 2;
	case 1: return socketpair(AF_UNIX, SOCK_STREAM, 0, two) ? -1 : 2;
	case 2: return eventfd(kind, 0) < 0 ? -1 : 1;
	case 3: return timerfd_create(CLOCK_MONOTONIC, 0) < 0 ? -1 : 1;
	case 4: return open("/proc/self/root/bin", O_RDONLY | O_DIRECTORY) < 0 ? -1 : 1;
	case 5: return signalfd(-1, none, 0) < 0 ? -1 : 1;
	case 6: return socket(AF_INET, SOCK_DGRAM, 0) < 0 ? -1 : 1;
	}
	one = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};
	return one < 0 || epoll_ctl(one, EPOLL_CTL_ADD, one - 1, &event) ? -1 : 1;
}

static void *wait_for_ever(void *nothing)
{
	for (;;)
		pause();
	return nothing;
}

static int hold(int descriptors, int mappings, int threads)
{
	sigset_t none;
	sigemptyset(&none);
	for (int kind = 0, got; descriptors > 0; kind++, descriptors -= got)
		if ((got = open_one(kind, &none)) < 0)
			return 0;
	// Neighbours that can't be one: every other page is for reading only.
	char *pages = mmap(0, (size_t)(mappings + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		return 0;
	for (int i = 0; i < mappings; i++) {
		pages[i * PAGE] = 1;
		if (i % 2 && mprotect(pages + i * PAGE, PAGE, PROT_READ))
			return 0;
	}
	pthread_attr_t small;
	pthread_t thread;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK);
	pthread_attr_setguardsize(&small, 0);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread, &small, wait_for_ever, 0))
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	int count[4] = {1000, 100, 10000, 2000}, ready[2], processes;
	char byte = 0;
	sigset_t asked;
	for (int i = 0; i < 4 && i + 1 < argc; i++)
		count[i] = atoi(argv[i + 1]);
	processes = count[1];
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, 0);
	if (pipe(ready))
		return 1;
	for (int i = 1; i < processes; i++)
		if (!fork()) {
			if (!hold(count[0] / processes, count[2] / processes, count[3] / processes) || write(ready[1], "x", 1) != 1)
				_exit(1);
			close(ready[0]);
			close(ready[1]);
			wait_for_ever(0);
		}
	if (!hold(count[0] / processes, count[2] / processes, count[3] / processes))
		return 1;
	for (int i = 1; i < processes; i++)
		if (read(ready[0], &byte, 1) != 1)
			return 1;
	close(ready[0]);
	close(ready[1]);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int signal, missing = 0;
		sigwait(&asked, &signal);
		while (waitpid(-1, 0, WNOHANG) > 0)
			missing++;
		printf(missing ? "BROKEN\n" : "intact\n");
		fflush(stdout);
	}
}

// Sleeps or computes for some milliseconds and tells whether anything was noticed.
// usage: undisturbed sleep|compute MILLISECONDS; then waits for the end of its input.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// In registers of all kinds, and below the stack pointer.
static double computed(void)
{
	unsigned long whole = 1;
	double broken = 1;
	volatile char zone[64] = {0};
	for (int i = 0; i < 100000; i++) {
		whole = whole * 6364136223846793005 + 1442695040888963407;
		broken = broken * 1.0000001 + (double)(whole >> 60);
		zone[i % 64] += whole >> 56;
	}
	return broken + zone[5];
}

int main(int argc, char **argv)
{
	long length = argc > 2 ? atol(argv[2]) : 0, start;
	int right = 1;
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGRTMAX);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	double first = computed();
	puts("ready");
	fflush(stdout);
	start = now_ms();
	if (!strcmp(argv[1], "sleep")) {
		struct timespec time = {length / 1000, length % 1000 * 1000000};
		right = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL) == 0;
	} else {
		while (now_ms() < start + length)
			right &= computed() == first;
	}
	printf("%s %ld\n", right ? "right" : "wrong", now_ms() - start);
	fflush(stdout);
	return read(0, &blocked, 1) != 0;
}

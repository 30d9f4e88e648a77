// Holds so many MiB of fresh random bytes, says that it does, and counts until it is killed.
// SIGUSR1 makes it check that the bytes are still those; SIGUSR2 makes it change a page in a hundred.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

static uint64_t *words;
static size_t count;

static uint64_t sum(void)
{
	uint64_t total = 0;
	for (size_t at = 0; at < count; at++)
		total = total * 31 + words[at];
	return total;
}

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], 0, 10) : 16) << 20;
	sigset_t asked;
	uint64_t before;

	words = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED)
		return 1;
	count = bytes / sizeof *words;
	for (size_t at = 0; at < bytes;) {
		// getrandom gives at most 32 MiB at once, and may be interrupted
		ssize_t got = getrandom((char *)words + at, bytes - at < 1 << 20 ? bytes - at : 1 << 20, 0);
		if (got > 0)
			at += got;
	}
	before = sum();
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigaddset(&asked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &asked, 0);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int signal;
		sigwait(&asked, &signal);
		if (signal == SIGUSR2) {
			for (size_t at = 0; at < count; at += 100 * 4096 / sizeof *words)
				words[at] ^= at | 1;
			before = sum();
			printf("changed\n");
			fflush(stdout);
			continue;
		}
		printf(sum() == before ? "intact\n" : "BROKEN\n");
		fflush(stdout);
	}
}

/* Clocks that count from a start go on from the instant of the freeze, however long the container lay there. */
// apart: 1.2
// never: set_back
#include "wait.h"

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};
static const char *names[] = {"CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_MONOTONIC_COARSE", "CLOCK_BOOTTIME"};

int main(void) {
	double last[4], next, longest[4] = {0};
	for (int i = 0; i < 4; i++)
		last[i] = now(clocks[i]);
	say("ready");
	do {
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
		spoil(nanosleep(&(struct timespec){.tv_sec = 1}, NULL););
		for (int i = 0; i < 4; i++) {
			next = now(clocks[i]);
			expect(next >= last[i], "%s goes back from %f to %f", names[i], last[i], next);
			if (next - last[i] > longest[i])
				longest[i] = next - last[i];
			last[i] = next;
		}
	} while (access(in_work("check"), F_OK) != 0);
	for (int i = 0; i < 4; i++)
		expect(longest[i] < 0.9, "%s has jumped by %f s", names[i], longest[i]);
	struct timespec kernel;
	must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel)); /* the vDSO agrees */
	expect(kernel.tv_sec - now(CLOCK_MONOTONIC) < 2, "the vDSO tells another time");
	return report();
}

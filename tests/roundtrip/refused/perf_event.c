/* Holds a counter of perf events. */
#include "../programs/wait.h"
#include <linux/perf_event.h>

int main(void) {
	struct perf_event_attr counter = {.type = PERF_TYPE_SOFTWARE, .size = sizeof counter, .config = PERF_COUNT_SW_DUMMY, .exclude_kernel = 1};
	int file = must(syscall(SYS_perf_event_open, &counter, 0, -1, -1, 0));
	must(fcntl(file, F_DUPFD, 77));
	close(file);
	freeze_here();
	expect(fcntl(77, F_GETFD) >= 0, "the counter has gone");
	return report();
}

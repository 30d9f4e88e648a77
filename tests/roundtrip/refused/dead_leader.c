/* A process whose main thread has ended while another lives on. */
#include "../programs/wait.h"

static void *lives_on(__attribute__((unused)) void *nothing) {
	char path[64], state[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", getpid());
	do {
		int stat = must(open(path, O_RDONLY));
		must(read(stat, state, sizeof state - 1));
		close(stat);
	} while (!strstr(state, ") Z"));
	freeze_here();
	exit(report());
}

int main(void) {
	pthread_t other;
	must(pthread_create(&other, NULL, lives_on, NULL));
	pthread_exit(NULL);
}

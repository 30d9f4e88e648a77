/* A pipe, on descriptor 77, that sends its signals to an owner. */
#include "../programs/wait.h"

int main(void) {
	int ends[2];
	signal(SIGIO, SIG_IGN);
	must(pipe(ends));
	must(dup2(ends[0], 77) | close(ends[0]));
	must(fcntl(77, F_SETOWN, getpid()));
	must(fcntl(77, F_SETFL, O_ASYNC));
	freeze_here();
	same("the owner", getpid(), fcntl(77, F_GETOWN));
	return report();
}

/* Has a directory's changes told by signals, which no kernel shows. */
#include "../programs/wait.h"

int main(void) {
	int directory = must(open("/work", O_RDONLY | O_DIRECTORY));
	must(dup2(directory, 77) | close(directory));
	signal(SIGIO, SIG_IGN);
	must(fcntl(77, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
	freeze_here();
	return report();
}

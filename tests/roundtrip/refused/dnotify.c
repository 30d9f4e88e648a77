/* Has a directory's changes told by signals, which no kernel shows. */
#include "../programs/wait.h"

int main(void) {
	must(dup2(must(open("/work", O_RDONLY | O_DIRECTORY)), 77));
	signal(SIGIO, SIG_IGN);
	must(fcntl(77, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
	freeze_here();
	return report();
}

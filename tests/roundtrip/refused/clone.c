/* A child that shares the descriptor table without being a thread, or that is the first of a pid namespace. */
// arguments: files | namespace
#include "../programs/wait.h"

int main(int count, char **arguments) {
	bool files = count > 1 && arguments[1][0] == 'f';
	pid_t child = must(syscall(SYS_clone, SIGCHLD | (files ? CLONE_FILES : CLONE_NEWPID), NULL, NULL, NULL, 0));
	if (child == 0) {
		wait_for("check");
		_exit(files ? dup2(0, 99) != 99 : getpid() != 1);
	}
	freeze_here();
	join(child);
	if (files)
		expect(fcntl(99, F_GETFD) >= 0, "the table is no longer shared");
	return report();
}

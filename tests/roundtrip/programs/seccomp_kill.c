/* A tight filter: any call but those few that the wait needs kills the process. */
#include "seccomp.h"

int main(void) {
	int status = 0;
	pid_t child = must(fork());
	if (child == 0) {
		struct sock_filter filter[] = {NUMBER, LET(SYS_access), LET(SYS_clock_nanosleep), LET(SYS_exit_group), KILL};
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		install(filter, sizeof filter / sizeof *filter, 0);
		wait_for("check");
		spoil(_exit(1););
		wait_for("kill");
		getppid();
		_exit(2);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* it goes on in its loop … */
	same("before the forbidden call, waitpid", 0, waitpid(child, &status, WNOHANG));
	say("kill"); /* … until it makes a forbidden call */
	if (status == 0)
		waitpid(child, &status, 0);
	expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "it ended with %#x", status);
	return report();
}

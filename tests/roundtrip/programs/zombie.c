/* Children that have ended and haven't been waited for keep their status; so does a dead group leader. */
#include "wait.h"

static pid_t gone(int with) {
	pid_t child = must(fork());
	if (child == 0) {
		setpgid(0, 0);
		if (with < 64)
			kill(getpid(), with);
		_exit(with);
	}
	siginfo_t info;
	must(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
	return child;
}

int main(void) {
	signal(SIGTERM, SIG_DFL);
	pid_t killed = gone(SIGTERM), left = gone(77);
	pid_t leader = must(fork());
	if (leader == 0) {
		setpgid(0, 0);
		if (fork() == 0) /* stays in the group of the dead one */
			while (pause()) {}
		_exit(78);
	}
	siginfo_t info = {0};
	must(waitid(P_PID, leader, &info, WEXITED | WNOWAIT));

	freeze_here();
	spoil(waitpid(left, NULL, 0););

	int status = 0;
	must(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
	expect(info.si_code == CLD_KILLED && info.si_status == SIGTERM, "killed: %d %d", info.si_code, info.si_status);
	expect(waitpid(killed, &status, 0) == killed && status == SIGTERM, "killed: status %#x", status);
	expect(waitpid(left, &status, 0) == left && status == 77 << 8, "left: status %#x", status);
	expect(waitpid(leader, &status, 0) == leader && status == 78 << 8, "leader: status %#x", status);
	expect(waitpid(-1, &status, WNOHANG) == 0, "the leader's child isn't ours, or not alive");
	expect(kill(-leader, SIGKILL) == 0, "the group is empty: %s", strerror(errno));
	expect(wait(&status) > 0 && status == SIGKILL, "the last child ended with %#x", status);
	return report();
}

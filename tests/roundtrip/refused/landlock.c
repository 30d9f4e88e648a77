/* A child, or a thread of it, that has confined itself. */
// arguments: child | thread
#include "../programs/wait.h"
#include <linux/landlock.h>
#include <sys/prctl.h>

static void *confine(__attribute__((unused)) void *nothing) {
	struct landlock_ruleset_attr rules = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
	int ruleset = must(syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0));
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(syscall(SYS_landlock_restrict_self, ruleset, 0));
	must(close(ruleset));
	say("confined");
	wait_for("check");
	return NULL;
}

int main(__attribute__((unused)) int count, char **arguments) {
	pid_t child = must(fork());
	if (child == 0) {
		pthread_t thread;
		if (arguments[1][0] == 't') {
			must(pthread_create(&thread, NULL, confine, NULL));
			pthread_join(thread, NULL);
		} else
			confine(NULL);
		_exit(0);
	}
	wait_for("confined");
	freeze_here();
	join(child);
	return report();
}

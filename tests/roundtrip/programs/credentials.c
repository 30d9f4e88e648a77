/* User and group ids, supplementary groups, umask, dumpable, no_new_privs: each process has its own. */
#include "wait.h"
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

static char before[4096], after[4096];

static void look(char into[4096]) {
	int status = must(open("/proc/thread-self/status", O_RDONLY));
	ssize_t length = must(read(status, into, 4095));
	into[length] = 0;
	close(status);
}

static void compare(const char *who, const char *what) {
	char *was = strstr(before, what), *is = strstr(after, what);
	int length = was ? strcspn(was, "\n") : 0;
	expect(was && is && !strncmp(was, is, length + 1), "%s: was %.*s, is %.*s", who, length, was, is ? (int)strcspn(is, "\n") : 0, is);
}

static void check(const char *who) {
	int dumpable = prctl(PR_GET_DUMPABLE);
	look(before);
	wait_for("check");
	spoil(prctl(PR_SET_DUMPABLE, !dumpable); umask(0123););
	look(after);
	for (char **what = (char *[]){"Uid:", "Gid:", "Groups:", "Umask:", "NoNewPrivs:", "CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:", NULL}; *what; what++)
		compare(who, *what);
	same("dumpable", dumpable, prctl(PR_GET_DUMPABLE));
}

int main(void) {
	pid_t child = must(fork());
	if (child == 0) {
		gid_t groups[100];
		for (int i = 0; i < 100; i++)
			groups[i] = 70000 + i;
		umask(027);
		must(setgroups(100, groups));
		must(setresgid(1001, 1002, 1003));
		must(setresuid(2001, 2002, 2003));
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		check("a user");
		same("getuid", 2001, getuid());
		_exit(0);
	}
	pid_t second = must(fork());
	if (second == 0) {
		must(prctl(PR_SET_KEEPCAPS, 1));
		must(setresuid(0, 3000, 0)); /* root that acts as a user */
		setfsgid(3001);
		must(prctl(PR_SET_DUMPABLE, 1));
		check("root as a user");
		must(seteuid(0));
		_exit(0);
	}
	umask(077);
	must(prctl(PR_SET_DUMPABLE, 0));
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	check("root");
	join(child);
	join(second);
	umask(0);
	return report();
}

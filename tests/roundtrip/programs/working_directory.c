/* Working and root directories of several processes, one nested, one in a tmpfs, one with a root of its own. */
#include "wait.h"

static void check(const char *expected) {
	char found[512] = "";
	wait_for("check");
	spoil(must(chdir("/")););
	must(getcwd(found, sizeof found));
	expect(!strcmp(found, expected), "working directory was %s, is %s", expected, found);
	struct stat here, there;
	must(stat(".", &here));
	must(stat(expected, &there));
	expect(here.st_ino == there.st_ino && here.st_dev == there.st_dev, "%s is another directory", expected);
}

int main(void) {
	char nested[256];
	pid_t children[3];
	snprintf(nested, sizeof nested, "%s", in_work("a/b c"));
	must(mkdir(in_work("a"), 0755));
	must(mkdir(nested, 0700));
	must(mkdir(in_work("jail"), 0755));
	must(mkdir(in_work("jail/cell"), 0755));
	must(mkdir("/tmp/inside", 0755));
	for (int i = 0; i < 3; i++) {
		if ((children[i] = must(fork())))
			continue;
		must(chdir(i == 0 ? nested : "/tmp/inside"));
		if (i < 2)
			check(i == 0 ? nested : "/tmp/inside");
		else {
			int back = must(open("/", O_RDONLY | O_DIRECTORY));
			must(chroot(in_work("jail")));
			must(chdir("/cell"));
			while (faccessat(back, "work/check", F_OK, 0) != 0)
				nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
			char found[512] = "";
			must(getcwd(found, sizeof found));
			bool jailed = access("/cell", F_OK) == 0 && access("/proc", F_OK) != 0;
			must(fchdir(back));
			must(chroot("."));
			expect(!strcmp(found, "/cell"), "in the jail, the working directory is %s", found);
			expect(jailed, "the jail is open");
		}
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	check("/work");
	for (int i = 0; i < 3; i++)
		join(children[i]);
	return report();
}

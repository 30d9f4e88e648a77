/* Control groups made inside: their limits and owners, which process and thread is in which, open files of them; frozen ones; namespaces that begin there. */
// arguments: first | second | threaded | frozen | cold | deeper
// capabilities: CAP_SYS_ADMIN
#include "wait.h"
#include <sys/mount.h>

#define TOP "/tmp/cgroups"

static void put(const char *path, const char *text) {
	int file = must(open(path, O_WRONLY | O_CLOEXEC));
	must(write(file, text, strlen(text)));
	close(file);
}

static const char *get(const char *path) {
	static __thread char text[4096];
	memset(text, 0, sizeof text);
	int file = must(open(path, O_RDONLY | O_CLOEXEC));
	must(read(file, text, sizeof text - 1));
	close(file);
	text[strcspn(text, "\n")] = 0;
	return text;
}

/* Tell whether this thread is in a group of the hierarchy that is looked at. */
static bool is_in(const char *hierarchy, const char *group) {
	char line[4096], wanted[100];
	bool found = false;
	FILE *file = fopen("/proc/thread-self/cgroup", "r");
	snprintf(wanted, sizeof wanted, "%s:%s\n", hierarchy, group);
	while (fgets(line, sizeof line, file))
		found |= strlen(line) >= strlen(wanted) && !strcmp(line + strlen(line) - strlen(wanted), wanted);
	fclose(file);
	return found;
}

static const char *hierarchy = "";

static void *in_a_thread(void *group) {
	char text[20];
	sprintf(text, "%ld", syscall(SYS_gettid));
	put(TOP "/c/t/cgroup.threads", text);
	say("in");
	wait_for("check");
	expect(is_in(hierarchy, group), "the thread is in another group");
	return NULL;
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "second";
	bool cold = what[0] == 'c', first = !strcmp(what, "first") || cold, threaded = what[0] == 't', deeper = what[0] == 'd';
	const char *freezer = cold ? "/a/freezer.state" : !strcmp(what, "frozen") ? "/a/cgroup.freeze" : NULL;
	char path[100];
	pthread_t thread;
	hierarchy = first ? cold ? "freezer" : "pids" : "0:";
	must(mkdir(TOP, 0755));
	if (mount("none", TOP, first ? "cgroup" : "cgroup2", 0, first ? hierarchy : NULL) != 0) {
		freezer = cold ? "/a/cgroup.freeze" : freezer, cold = false;
		must(first ? 0 : -1); /* a machine without version 1 */
		must(mount("none", TOP, "cgroup2", 0, NULL));
		hierarchy = "0:";
	}
	must(mkdir(TOP "/a", 0755)), must(mkdir(TOP "/a/b", 0750)), must(mkdir(TOP "/empty", 0755));
	const char *limit = access(TOP "/a/b/pids.max", F_OK) == 0 ? TOP "/a/b/pids.max" : first ? NULL : TOP "/a/b/cgroup.max.descendants";
	if (limit)
		put(limit, "77");
	must(chown(TOP "/a/b", 7, 8)), must(chmod(TOP "/a/b", 0711)), must(chown(TOP "/a/b/cgroup.procs", 7, 8)), must(chmod(TOP "/a/b/cgroup.procs", 0664));
	bool tells = access(TOP "/a/notify_on_release", F_OK) == 0;
	if (tells)
		put(TOP "/a/notify_on_release", "1");
	int members = must(open(TOP "/a/b/cgroup.procs", O_RDWR | O_CLOEXEC)), directory = must(open(TOP "/a", O_RDONLY | O_CLOEXEC));
	pid_t child = must(fork());
	if (child == 0) {
		put(TOP "/a/b/cgroup.procs", "0");
		if (deeper)
			must(unshare(CLONE_NEWCGROUP)), must(mkdir(TOP "/a/b/c", 0755)), put(TOP "/a/b/c/cgroup.procs", "0");
		say("there");
		wait_for("check");
		expect(is_in(hierarchy, deeper ? "/c" : "/a/b"), "the child is in another group");
		_exit(0);
	}
	wait_for("there");
	if (threaded) {
		must(mkdir(TOP "/c", 0755)), must(mkdir(TOP "/c/t", 0755));
		put(TOP "/c/t/cgroup.type", "threaded");
		put(TOP "/c/cgroup.procs", "0");
		pthread_create(&thread, NULL, in_a_thread, "/c/t");
		wait_for("in");
	}
	if (freezer)
		snprintf(path, sizeof path, TOP "%s", freezer), put(path, cold ? "FROZEN" : "1");
	freeze_here();
	spoil(if (freezer) put(path, cold ? "THAWED" : "0"); else put(threaded ? TOP "/cgroup.procs" : TOP "/a/cgroup.procs", "0"););
	if (freezer) {
		expect(!strncmp(get(path), cold ? "FR" : "1", cold ? 2 : 1), "it is not frozen: %s", get(path));
		put(path, cold ? "THAWED" : "0");
	}
	struct stat one, other;
	must(fstat(members, &one)), must(stat(TOP "/a/b/cgroup.procs", &other));
	same("the open file", other.st_ino, one.st_ino);
	expect(other.st_uid == 7 && other.st_gid == 8 && other.st_mode == (S_IFREG | 0664), "it is %d's and %d's, %o", other.st_uid, other.st_gid, other.st_mode);
	must(stat(TOP "/a/b", &other));
	expect(other.st_uid == 7 && other.st_gid == 8 && other.st_mode == (S_IFDIR | 0711), "the group is %d's and %d's, %o", other.st_uid, other.st_gid, other.st_mode);
	must(faccessat(directory, "cgroup.procs", F_OK, 0));
	expect(!tells || !strcmp(get(TOP "/a/notify_on_release"), "1"), "it tells nobody when it is empty");
	join(child);
	expect(is_in(hierarchy, threaded ? "/c" : "/"), "is in another group");
	expect(!limit || !strcmp(get(limit), "77"), "another limit");
	expect(access(TOP "/empty", F_OK) == 0, "a group has gone");
	if (threaded) {
		pthread_join(thread, NULL);
		expect(!strcmp(get(TOP "/c/t/cgroup.type"), "threaded"), "it is not threaded");
	}
	return report();
}

/* Control groups made inside: their limits, and which process and thread is in which. */
// arguments: first | second | threaded
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
	bool first = what[0] == 'f', threaded = what[0] == 't';
	pthread_t thread;
	hierarchy = first ? "pids" : "0:";
	must(mkdir(TOP, 0755));
	if (mount("none", TOP, first ? "cgroup" : "cgroup2", 0, first ? "pids" : NULL) != 0) {
		must(first ? 0 : -1); /* a machine without version 1 */
		must(mount("none", TOP, "cgroup2", 0, NULL));
		hierarchy = "0:";
	}
	must(mkdir(TOP "/a", 0755)), must(mkdir(TOP "/a/b", 0750)), must(mkdir(TOP "/empty", 0755));
	const char *limit = access(TOP "/a/b/pids.max", F_OK) == 0 ? TOP "/a/b/pids.max" : first ? NULL : TOP "/a/b/cgroup.max.descendants";
	if (limit)
		put(limit, "77");
	pid_t child = must(fork());
	if (child == 0) {
		put(TOP "/a/b/cgroup.procs", "0");
		say("there");
		wait_for("check");
		expect(is_in(hierarchy, "/a/b"), "the child is in another group");
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
	freeze_here();
	spoil(put(threaded ? TOP "/cgroup.procs" : TOP "/a/cgroup.procs", "0"););
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

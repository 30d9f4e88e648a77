/* User namespaces inside: maps, users, groups and capabilities in them; who made them; what belongs to them; nested ones. */
// arguments: mapped | single | unmapped | nested | threads | uts
#include "namespaces.h"
#include <grp.h>
#include <linux/nsfs.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#ifndef NS_GET_OWNER_UID
#define NS_GET_OWNER_UID _IO(0xb7, 0x4)
#endif

static void put(pid_t who, const char *name, const char *text) {
	char path[64];
	sprintf(path, "/proc/%d/%s", who, name);
	int file = must(open(path, O_WRONLY | O_CLOEXEC));
	must(write(file, text, strlen(text)));
	close(file);
}

static void get(const char *name, char into[400]) {
	char path[64];
	sprintf(path, "/proc/thread-self/%s", name);
	int file = must(open(path, O_RDONLY | O_CLOEXEC));
	ssize_t length = must(read(file, into, 399));
	into[length] = 0;
	close(file);
}

struct rights { char status[8][100], uid_map[400], gid_map[400], setgroups[400]; unsigned maker; int keeps; };

static struct rights look_at_rights(void) {
	static const char *names[] = {"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"};
	struct rights now = {0};
	static __thread char text[8192];
	int file = must(open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC));
	text[must(read(file, text, sizeof text - 1))] = 0;
	close(file);
	for (int i = 0; i < 8; i++) {
		char *found = strstr(text, names[i]);
		snprintf(now.status[i], 100, "%.*s", (int)strcspn(found, "\n"), found);
	}
	get("uid_map", now.uid_map), get("gid_map", now.gid_map);
	file = must(open("/proc/self/setgroups", O_RDONLY | O_CLOEXEC));
	must(read(file, now.setgroups, 20)), close(file);
	file = must(open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC));
	must(ioctl(file, NS_GET_OWNER_UID, &now.maker)), close(file);
	now.keeps = prctl(PR_GET_SECUREBITS);
	return now;
}

static void compare_rights(int who, const struct rights *was) {
	struct rights is = look_at_rights();
	for (int i = 0; i < 8; i++)
		expect(!strcmp(was->status[i], is.status[i]), "%d: was %s, is %s", who, was->status[i], is.status[i]);
	expect(!strcmp(was->uid_map, is.uid_map) && !strcmp(was->gid_map, is.gid_map), "%d: maps are %s, %s", who, is.uid_map, is.gid_map);
	expect(!strcmp(was->setgroups, is.setgroups), "%d: setgroups is %s", who, is.setgroups);
	same("the maker of the namespace", was->maker, is.maker);
	same("securebits", was->keeps, is.keeps);
}

static void stay(int who) {
	struct rights was = look_at_rights();
	note_place(who, "user");
	wait_for("check");
	check_place(who, "user");
	spoil(was.keeps++;);
	compare_rights(who, &was);
}

static void *thread(void *unused) {
	(void)unused;
	stay(2);
	return NULL;
}

/* Make a user namespace; the parent writes its maps. */
static void leave(void) { must(unshare(CLONE_NEWUSER)), say("left"), wait_for("mapped"); }

static int child(char what) {
	if (what == 's')
		must(setgroups(0, NULL)), must(setresgid(44, 44, 44)), must(setresuid(33, 33, 33)), must(prctl(PR_SET_DUMPABLE, 1));
	leave();
	if (what == 's') { /* as anybody may */
		put(getpid(), "setgroups", "deny");
		put(getpid(), "uid_map", "0 33 1\n"), put(getpid(), "gid_map", "0 44 1\n");
	}
	if (what == 'm' || what == 't') {
		gid_t groups[] = {3, 4};
		if (what == 't') {
			pthread_t other;
			must(pthread_create(&other, NULL, thread, NULL));
			await(&places[2].noted);
			must(syscall(SYS_setresuid, 5, 5, 5)); /* this thread alone */
			stay(1);
			pthread_join(other, NULL);
			return 0;
		}
		must(setgroups(2, groups)), must(setresgid(2, 2, 2));
		must(prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 4)); /* NO_SETUID_FIXUP, KEEP_CAPS */
		must(setresuid(7, 7, 7));
	} else if (what == 'u' && getenv("UTS")) {
		must(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET));
		must(sethostname("inside", 6));
	}
	pid_t other = must(fork());
	if (other == 0) {
		if (what == 'n') { /* one more below, in which its root is our user 7 */
			must(setresuid(7, 7, 7));
			must(prctl(PR_SET_DUMPABLE, 1));
			must(unshare(CLONE_NEWUSER));
			put(getpid(), "setgroups", "deny");
			put(getpid(), "uid_map", "0 7 1\n");
		}
		stay(2);
		return 0;
	}
	stay(1);
	if (getenv("UTS")) {
		char name[65];
		must(gethostname(name, sizeof name));
		expect(!strcmp(name, "inside"), "it is %s", name);
		must(sethostname("mine", 4)); /* belongs to the user namespace that we have rights in */
	}
	join(other);
	return 0;
}

int main(int count, char **arguments) {
	const char *kind = arguments[count - 1];
	char what = !strcmp(kind, "uts") ? 'u' : *kind;
	if (!strcmp(kind, "uts"))
		setenv("UTS", "1", 1);
	prepare_places();
	pid_t made = must(fork());
	if (made == 0)
		exit(child(what));
	wait_for("left");
	if (strcmp(kind, "unmapped")) {
		if (what != 's')
			put(made, "uid_map", "0 0 8\n10 20 5\n"), put(made, "gid_map", "0 0 10\n");
	}
	say("mapped");
	await(&places[1].noted), await(&places[2].noted);
	note_place(0, "user");
	freeze_here();
	check_place(0, "user");
	compare_places("user", 3);
	join(made);
	return report();
}

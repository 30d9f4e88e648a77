/* Mount namespaces inside: what each has mounted, who is in which, roots that are others, files that are open in them. */
// arguments: copy | private | changed | pivoted | twice | thread | init | sandbox | follow
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT
#include "files.h"
#include "mounts.h"
#include "namespaces.h"

static struct mounts was[4], is;

static void holds(int who, const char *path, const char *text) {
	char found[100] = "";
	int file = open(path, O_RDONLY);
	expect(file >= 0 && read(file, found, 99) >= 0 && !strcmp(found, text), "%d: %s holds %s, not %s", who, path, found, text);
	close(file);
}

static void make(const char *path) { must(mkdir(path, 0755) == 0 || errno == EEXIST ? 0 : -1); }
static void alone(void) { must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)); }
static void bind(const char *from, const char *to) { make(to), must(mount(from, to, NULL, MS_BIND | MS_REC, NULL)); }

/* A root of its own: what `bwrap` and container runtimes make. */
static void pivot(void) {
	alone();
	make("/tmp/root"), must(mount("root", "/tmp/root", "tmpfs", MS_NOSUID, "mode=755,size=2m"));
	bind("/work", "/tmp/root/work"), bind("/programs", "/tmp/root/programs"), bind("/dev", "/tmp/root/dev");
	make("/tmp/root/proc"), must(mount("proc", "/tmp/root/proc", "proc", MS_NOSUID | MS_NODEV, NULL));
	make("/tmp/root/tmp"), must(mount("inner", "/tmp/root/tmp", "tmpfs", 0, "size=1m"));
	make("/tmp/root/old");
	must(chdir("/tmp/root"));
	must(syscall(SYS_pivot_root, ".", "old"));
	must(chdir("/")), must(umount2("/old", MNT_DETACH)), must(rmdir("/old"));
	must(mount(NULL, "/dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID, NULL));
}

static void stay(int who, const char *file, const char *text) {
	int opened = must(open(file, O_RDWR | O_CLOEXEC));
	char directory[100], now[100], found[10] = "";
	must((long)getcwd(directory, 100));
	read_mounts(&was[who]);
	note_place(who, "mnt");
	wait_for("check");
	check_place(who, "mnt");
	read_mounts(&is);
	spoil(is.count--;);
	expect_same_mounts(&was[who], &is);
	holds(who, file, text);
	must((long)getcwd(now, 100));
	expect(!strcmp(directory, now), "%d: was in %s, is in %s", who, directory, now);
	must(write(opened, "X", 1));
	must(pread(opened, found, 9, 0));
	expect(found[0] == 'X' && !strcmp(found + 1, text + 1), "%d: the open file holds %s", who, found);
}

/* In a pid namespace of their own, whose processes its /proc shows; parts of that are covered. */
static void check_proc(int who) {
	char self[20] = "", first[100] = "";
	must(readlink("/proc/self", self, 19));
	expect(atoi(self) == getpid(), "%d: /proc/self is %s", who, self);
	int file = must(open("/proc/1/cmdline", O_RDONLY));
	expect(read(file, first, 99) > 0 && strstr(first, "namespace_mounts"), "%d: the first process is %s", who, first);
	close(file);
	expect(open("/proc/sys/kernel/hostname", O_WRONLY) == -1 && errno == EROFS, "%d: /proc/sys can be written to", who);
	holds(who, "/proc/tty/file", "covered");
}

static void cover_proc(void) {
	must(mount("/proc/sys", "/proc/sys", NULL, MS_BIND, NULL));
	must(mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	must(mount("cover", "/proc/tty", "tmpfs", 0, "size=1m")), put("/proc/tty/file", "covered");
}

static void map(const char *name, const char *text) {
	char path[64];
	sprintf(path, "/proc/self/%s", name);
	put(path, text);
}

static int inside(int who, const char *what) {
	if (what[0] != 's')
		must(unshare(CLONE_NEWNS));
	const char *file = "/tmp/file", *text = "below";
	if (what[0] == 'f') { /* is told what is mounted outside, and what it mounts is its own */
		must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
		make("/run/from"), bind("/run/from", "/run/own");
	} else if (what[0] == 'c' && what[1] == 'o') {
	} else if (what[1] == 'r') {
		alone();
	} else if (what[1] == 'h') {
		alone();
		must(mount("inner", "/tmp", "tmpfs", MS_NODEV, "size=1m")), put("/tmp/file", "inside");
		make("/tmp/deep"), must(mount("deeper", "/tmp/deep", "tmpfs", 0, "")), put("/tmp/deep/file", "deeper");
		bind("/tmp/deep", "/run/deep"), must(umount2("/sys", MNT_DETACH));
		must(chdir("/run/deep"));
		file = "/tmp/deep/file", text = "deeper";
	} else {
		pivot();
		if (what[0] == 'i')
			cover_proc(), check_proc(who);
		put("/tmp/file", "inside"), must(chdir("/tmp"));
		text = "inside";
	}
	pid_t child = must(fork());
	if (child == 0) {
		if (what[0] == 't') { /* one more, made of this one */
			must(unshare(CLONE_NEWNS));
			make("/tmp/more"), must(mount("more", "/tmp/more", "tmpfs", 0, "")), put("/tmp/more/file", "more");
			stay(who + 1, "/tmp/more/file", "more");
			return 0;
		}
		note_place(who + 1, "mnt");
		wait_for("check");
		check_place(who + 1, "mnt");
		return 0;
	}
	stay(who, file, text);
	if (what[0] == 'i')
		check_proc(who);
	if (what[0] == 'f') {
		wait_for("mounted");
		holds(who, "/tmp/new/file", "news");
	}
	join(child);
	return 0;
}

static void *thread(void *unused) {
	(void)unused;
	must(unshare(CLONE_NEWNS)), alone();
	must(mount("inner", "/tmp", "tmpfs", 0, "")), put("/tmp/file", "inside"), must(chdir("/tmp"));
	stay(1, "/tmp/file", "inside");
	return NULL;
}

int main(int count, char **arguments) {
	const char *what = arguments[count - 1];
	umask(0022);
	prepare_places();
	if (what[0] == 'f')
		must(mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL));
	put("/tmp/file", "below");
	if (what[1] == 'h' && what[0] == 't') {
		pthread_t other;
		must(pthread_create(&other, NULL, thread, NULL));
		await(&places[1].noted);
		note_place(0, "mnt");
		read_mounts(&was[0]);
		freeze_here();
		check_place(0, "mnt");
		pthread_join(other, NULL);
		read_mounts(&is), expect_same_mounts(&was[0], &is), holds(0, "/tmp/file", "below");
		compare_places("mnt", 2);
		return report();
	}
	int flags = what[0] == 'i' ? CLONE_NEWPID : what[0] == 's' ? CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS : 0;
	pid_t child = must(syscall(SYS_clone, SIGCHLD | flags, 0, 0, 0, 0));
	if (child == 0) {
		if (what[0] == 's') /* as anybody may */
			map("setgroups", "deny"), map("uid_map", "0 0 1\n"), map("gid_map", "0 0 1\n");
		exit(inside(1, what));
	}
	await(&places[1].noted), await(&places[2].noted);
	note_place(0, "mnt");
	read_mounts(&was[0]);
	freeze_here();
	check_place(0, "mnt");
	read_mounts(&is);
	expect_same_mounts(&was[0], &is);
	if (what[0] == 'f') { /* they hear of it only now that they have looked */
		await(&places[1].checked), await(&places[2].checked);
		make("/tmp/new"), must(mount("new", "/tmp/new", "tmpfs", 0, "")), put("/tmp/new/file", "news");
		say("mounted");
	}
	join(child);
	holds(0, "/tmp/file", what[0] == 'c' && what[1] == 'o' ? "Xelow" : what[1] == 'r' || what[0] == 'f' ? "Xelow" : "below");
	compare_places("mnt", 3);
	return report();
}

/* Mounts with id maps of their own: of the root, of a part of it and a single file, of a tmpfs, in a mount namespace of their own; files that are open in them. */
// arguments: bind | file | tmpfs | nested | shared
// capabilities: CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_SETFCAP CAP_CHOWN CAP_DAC_OVERRIDE
// feature: mount_id_maps
#include "files.h"
#include "mounts.h"
#include <linux/mount.h>

static struct mounts was, is;
static int opened;

static int users(const char *uids, const char *gids) {
	char path[100];
	pid_t child = must(fork());
	if (!child) {
		must(unshare(CLONE_NEWUSER));
		say("users");
		pause();
	}
	wait_for("users");
	sprintf(path, "/work/users"), must(unlink(path));
	sprintf(path, "/proc/%d/uid_map", child), put(path, uids);
	sprintf(path, "/proc/%d/gid_map", child), put(path, gids);
	sprintf(path, "/proc/%d/ns/user", child);
	int namespace = must(open(path, O_RDONLY | O_CLOEXEC));
	must(kill(child, SIGKILL)), must(waitpid(child, NULL, 0));
	return namespace;
}

static void map(const char *from, const char *to) {
	int ids = users("0 5000 10\n20 7000 3\n", "0 6000 10\n");
	int tree = must(syscall(SYS_open_tree, AT_FDCWD, from, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOEXEC, .userns_fd = ids};
	must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes));
	must(syscall(SYS_move_mount, tree, "", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH));
	close(tree), close(ids);
}

static void owned(const char *path, uid_t uid, gid_t gid) {
	struct stat found = {0};
	expect(stat(path, &found) == 0 && found.st_uid == uid && found.st_gid == gid, "%s belongs to %u:%u, not %u:%u", path, found.st_uid, found.st_gid, uid, gid);
}

static void make(const char *what) {
	if (!strcmp(what, "nested"))
		must(unshare(CLONE_NEWNS)), must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	must(mkdir("/run/from", 0755)), must(mkdir("/run/to", 0755));
	if (!strcmp(what, "tmpfs"))
		must(mount("plain", "/run/from", "tmpfs", 0, "size=1m"));
	if (!strcmp(what, "shared"))
		must(mount("plain", "/run/from", "tmpfs", 0, "size=1m")), must(mount(NULL, "/run/from", NULL, MS_SHARED, NULL));
	put("/run/from/file", "one"), must(chown("/run/from/file", 3, 4));
	put("/run/from/other", "two"), must(chown("/run/from/other", 21, 0));
	if (!strcmp(what, "file"))
		put("/run/to/file", "hidden"), map("/run/from/file", "/run/to/file");
	else
		map("/run/from", "/run/to");
	opened = must(open("/run/to/file", O_RDWR));
	read_mounts(&was);
}

static void verify(const char *what) {
	char text[10] = "";
	struct stat found;
	read_mounts(&is);
	spoil(must(chown("/run/from/file", 4, 4)););
	expect_same_mounts(&was, &is);
	owned("/run/from/file", 3, 4), owned("/run/to/file", 5003, 6004);
	must(fstat(opened, &found));
	expect(found.st_uid == 5003, "the open file belongs to %u", found.st_uid);
	expect(pread(opened, text, 9, 0) == 3 && !strcmp(text, "one"), "the open file holds %s", text);
	if (!strcmp(what, "file"))
		return;
	owned("/run/to/other", 7001, 6000);
	must(setegid(6002)), must(seteuid(5002)), put("/run/to/new", "new"), must(seteuid(0)), must(setegid(0));
	owned("/run/to/new", 5002, 6002), owned("/run/from/new", 2, 2);
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "bind";
	umask(0022);
	if (strcmp(what, "nested")) {
		make(what);
		must(chmod("/run/from", 0777));
		freeze_here();
		verify(what);
		return report();
	}
	pid_t child = must(fork());
	if (!child) {
		make(what);
		must(chmod("/run/from", 0777));
		say("made");
		wait_for("check");
		verify(what);
		_exit(0);
	}
	wait_for("made");
	freeze_here();
	join(child);
	return report();
}

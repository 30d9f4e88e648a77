/* What the config mounts twice in one place, changed below the other, too: by all at once, or once that is taken away. */
// arguments: all | twice | uncovered | nested | nested-uncovered
// capabilities: CAP_SYS_ADMIN
// mount: tmpfs /hidden/deep tmpfs /hidden tmpfs /hidden
#include "files.h"
#include "mounts.h"
#include <linux/mount.h>

static struct mounts was, is;

static void all(unsigned long attribute) {
	struct mount_attr attributes = {.attr_set = attribute};
	must(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0x8000 /* AT_RECURSIVE */, &attributes, sizeof attributes));
}

static void make(const char *what) {
	if (strstr(what, "uncovered")) {
		must(umount("/hidden"));
		must(mount(NULL, "/hidden", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	} else {
		put("/hidden/file", "top");
		all(MOUNT_ATTR_NOSUID);
	}
	if (!strcmp(what, "twice")) {
		must(mkdir("/hidden/in", 0755)), must(mount("in", "/hidden/in", "tmpfs", 0, NULL));
		put("/hidden/in/file", "in the top");
		must(mount("over", "/hidden", "tmpfs", 0, "size=1m")), put("/hidden/file", "over");
	}
	read_mounts(&was);
}

static void verify(const char *what) {
	read_mounts(&is);
	spoil(is.count--;);
	expect_same_mounts(&was, &is);
	if (!strcmp(what, "twice"))
		look("/hidden/file", "over"), must(umount("/hidden")), look("/hidden/in/file", "in the top"), must(umount("/hidden/in"));
	if (strstr(what, "uncovered")) {
		expect(open("/hidden/new", O_CREAT | O_RDWR, 0600) == -1 && errno == EROFS, "can be written to");
		return;
	}
	look("/hidden/file", "top"), must(umount("/hidden"));
	expect(access("/hidden/file", F_OK) != 0, "what was on top is below, too");
	put("/hidden/new", "new"), must(umount("/hidden"));
	put("/hidden/deep/new", "new");
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "all";
	pid_t child = 0;
	if (!strstr(what, "nested")) {
		make(what);
		freeze_here();
		verify(what);
	} else {
		if (!(child = must(fork()))) {
			must(unshare(CLONE_NEWNS)), must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
			make(what);
			say("made");
			wait_for("check");
			verify(what);
			_exit(0);
		}
		wait_for("made");
		freeze_here();
		join(child);
	}
	return report();
}

/* Mounts of a user namespace, all changed at once, also those that others of the config hide: as for services of systemd in a container of podman's. */
// mount: tmpfs /hidden tmpfs /hidden
#include "mounts.h"
#include <linux/mount.h>

static struct mounts was, is;

int main(void) {
	pid_t child = must(fork());
	if (!child) {
		must(unshare(CLONE_NEWUSER | CLONE_NEWNS));
		struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID};
		must(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0x8000 /* AT_RECURSIVE */, &attributes, sizeof attributes));
		must(mount("new", "/hidden", "tmpfs", 0, "size=1m"));
		read_mounts(&was);
		say("made");
		wait_for("check");
		read_mounts(&is);
		spoil(is.count--;);
		expect_same_mounts(&was, &is);
		_exit(0);
	}
	wait_for("made");
	freeze_here();
	join(child);
	return report();
}

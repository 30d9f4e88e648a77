/* Mounts that only a descriptor holds, made anew, copied or taken away; files that are open in them. */
// arguments: new | copy | part | file | lazy | once
// capabilities: CAP_SYS_ADMIN
#include "wait.h"
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

static int held = -1, again = -1, opened = -1, directory = -1;

static void put(int at, const char *path, const char *text) {
	int file = must(openat(at, path, O_WRONLY | O_CREAT, 0640));
	must(write(file, text, strlen(text)));
	close(file);
}

static void look(int at, const char *path, const char *text) {
	char found[100] = "";
	int file = openat(at, path, O_RDONLY);
	expect(file >= 0 && read(file, found, 99) >= 0 && !strcmp(found, text), "%s holds %s, not %s", path, found, text);
	close(file);
}

static int copy(const char *path) { return must(syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)); }

static void make(const char *what) {
	must(mkdir("/run/to", 0755));
	if (!strcmp(what, "new") || !strcmp(what, "once")) {
		int context = must(syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
		must(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "1m", 0));
		must(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
		held = must(syscall(SYS_fsmount, context, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC));
		close(context);
		must(mkdirat(held, "in", 0755));
	} else {
		must(mkdir("/run/from", 0755)), must(mkdir("/run/from/in", 0755));
		if (!strcmp(what, "lazy"))
			must(mount("/run/from", "/run/to", NULL, MS_BIND, NULL)), must(mount(NULL, "/run/to", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID, NULL)), held = must(open("/run/to", O_PATH));
		else if (!strcmp(what, "file"))
			put(AT_FDCWD, "/run/from/file", "a file"), held = copy("/run/from/file");
		else
			held = copy(!strcmp(what, "part") ? "/run/from" : "/");
	}
	if (!strcmp(what, "file"))
		return;
	const char *inside = !strcmp(what, "copy") ? "run/from/in" : "in";
	directory = must(openat(held, inside, O_RDONLY | O_DIRECTORY));
	put(directory, "file", "within");
	opened = must(openat(directory, "file", O_RDWR | O_APPEND));
	must(lseek(opened, 3, SEEK_SET));
	again = must(openat(held, ".", O_PATH));
	if (!strcmp(what, "lazy"))
		must(umount2("/run/to", MNT_DETACH)), close(held), close(again);
}

static void verify(const char *what) {
	char text[100] = "";
	struct statvfs system;
	spoil(if (opened >= 0) lseek(opened, 0, SEEK_SET); else put(AT_FDCWD, "/run/from/file", "other"););
	if (!strcmp(what, "file")) {
		put(AT_FDCWD, "/run/place", "");
		must(syscall(SYS_move_mount, held, "", AT_FDCWD, "/run/place", MOVE_MOUNT_F_EMPTY_PATH));
		return look(AT_FDCWD, "/run/place", "a file");
	}
	expect(read(opened, text, 9) == 3 && !strcmp(text, "hin"), "the open file goes on with %s", text);
	look(directory, "file", "within");
	must(fstatvfs(opened, &system));
	if (!strcmp(what, "lazy")) {
		expect(system.f_flag & ST_NOSUID, "it is not nosuid any more");
		expect(syscall(SYS_move_mount, directory, "", AT_FDCWD, "/run/to", MOVE_MOUNT_F_EMPTY_PATH) == -1, "what was taken away was mounted");
		return look(AT_FDCWD, "/run/from/in/file", "within");
	}
	if (!strcmp(what, "new") || !strcmp(what, "once"))
		expect((system.f_flag & (ST_NOSUID | ST_NOEXEC)) == (ST_NOSUID | ST_NOEXEC) && system.f_blocks * system.f_frsize == 1 << 20, "other options");
	if (!strcmp(what, "once")) { /* who closes the first loses it */
		close(held);
		expect(syscall(SYS_move_mount, again, "", AT_FDCWD, "/run/to", MOVE_MOUNT_F_EMPTY_PATH) == -1, "it was mounted");
		return look(directory, "file", "within");
	}
	must(syscall(SYS_move_mount, again, "", AT_FDCWD, "/run/to", MOVE_MOUNT_F_EMPTY_PATH));
	look(AT_FDCWD, !strcmp(what, "copy") ? "/run/to/run/from/in/file" : "/run/to/in/file", "within");
	if (strcmp(what, "new"))
		look(AT_FDCWD, "/run/from/in/file", "within");
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "new";
	make(what);
	freeze_here();
	verify(what);
	return report();
}

/* Holds a mount that is attached nowhere: with others mounted in it, shared, with a file that is deleted, of which only a file is open. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "tree";
	int is_tree = !strcmp(what, "tree"), file;
	if (mkdir("/run/from", 0755) || mkdir("/run/from/in", 0755))
		return perror("mkdir"), 1;
	if (is_tree && mount("in", "/run/from/in", "tmpfs", 0, NULL))
		return perror("mount"), 1;
	if (!strcmp(what, "shared") && (mount("/run/from", "/run/from", NULL, MS_BIND, NULL) || mount(NULL, "/run/from", NULL, MS_SHARED, NULL)))
		return perror("mount"), 1;
	int held = syscall(SYS_open_tree, AT_FDCWD, is_tree ? "/run" : "/run/from", OPEN_TREE_CLONE | (is_tree ? 0x8000 /* AT_RECURSIVE */ : 0));
	if (held < 0)
		return perror("open_tree"), 1;
	if (!strcmp(what, "deleted"))
		if ((file = openat(held, "file", O_CREAT | O_RDWR, 0600)) < 0 || unlinkat(held, "file", 0))
			return perror("file"), 1;
	FILE *ready = fopen("/work/ready", "w");
	if (!ready)
		return perror("ready"), 1;
	fclose(ready);
	while (access("/work/check", F_OK))
		usleep(20000);
	FILE *out = fopen("/work/out", "w");
	fputs("ok\n", out);
	return fclose(out);
}

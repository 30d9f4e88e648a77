/* Directories removed while open, worked in, or the root of a process; a FIFO, a symbolic link and a device without a name. */
// capabilities: CAP_SYS_CHROOT
#include "wait.h"
#include <sys/sysmacros.h>

static void goes_by(const char *link, const char *name) {
	char found[512] = "", expected[512];
	must(readlink(link, found, sizeof found - 1));
	snprintf(expected, sizeof expected, "%s (deleted)", name);
	expect(!strcmp(found, expected), "%s is %s", expected, found);
}

int main(void) {
	struct stat before, after;
	char link[64], text[64] = "";
	must(mkdir(in_work("open"), 0751));
	must(chown(in_work("open"), 1234, 0));
	must(mkdir(in_work("worked in"), 0700));
	must(mkdir(in_work("jail"), 0700));
	int open_one = must(open(in_work("open"), O_RDONLY | O_DIRECTORY)), path = must(open(in_work("open"), O_PATH | O_CLOEXEC));
	must(rmdir(in_work("open")));
	must(fstat(open_one, &before));
	pid_t child = must(fork());
	if (child == 0) {
		int outside = must(open("/", O_RDONLY | O_DIRECTORY));
		must(chdir(in_work("worked in")));
		must(chroot(in_work("jail")));
		must(faccessat(outside, in_work(".") + 1, F_OK, 0));
		must(unlinkat(outside, in_work("worked in") + 1, AT_REMOVEDIR));
		must(unlinkat(outside, in_work("jail") + 1, AT_REMOVEDIR));
		close(must(openat(outside, in_work("left") + 1, O_CREAT | O_WRONLY, 0600)));
		while (faccessat(outside, in_work("check") + 1, F_OK, 0) != 0)
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		bool lost = getcwd(text, sizeof text) == NULL && errno == ENOENT, jailed = access(in_work("."), F_OK) != 0;
		struct stat root;
		must(stat("/", &root));
		must(fchdir(outside));
		must(chroot("."));
		expect(lost, "the working directory is %s", text);
		expect(jailed, "the jail is open");
		same("links of the root", 0, root.st_nlink);
		_exit(0);
	}
	must(mkfifo(in_work("fifo"), 0640));
	int both = must(open(in_work("fifo"), O_RDWR)), in = must(open(in_work("fifo"), O_RDONLY | O_NONBLOCK)), out = must(open(in_work("fifo"), O_WRONLY));
	must(unlink(in_work("fifo")));
	must(write(out, "in the fifo", 11));
	must(symlink("nowhere", in_work("symlink")));
	int symbolic = must(open(in_work("symlink"), O_PATH | O_NOFOLLOW));
	must(unlink(in_work("symlink")));
	must(mknod("/dev/zero too", S_IFCHR | 0640, makedev(1, 5)));
	int device = must(open("/dev/zero too", O_RDWR));
	must(unlink("/dev/zero too"));
	wait_for("left");

	freeze_here();
	spoil(must(fchmod(open_one, 0700)););

	must(fstat(open_one, &after));
	same("mode", before.st_mode, after.st_mode);
	same("owner", before.st_uid, after.st_uid);
	same("links", before.st_nlink, after.st_nlink);
	snprintf(link, sizeof link, "/proc/self/fd/%d", open_one);
	goes_by(link, in_work("open"));
	expect(openat(open_one, "new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file can be made in it");
	must(fstat(path, &before));
	same("the inode of the O_PATH one", after.st_ino, before.st_ino);
	same("its close-on-exec", FD_CLOEXEC, fcntl(path, F_GETFD));
	join(child);

	close(both);
	same("reading from the FIFO", 11, read(in, text, sizeof text));
	expect(!memcmp(text, "in the fifo", 11), "the FIFO held %.20s", text);
	must(write(out, "more", 4));
	same("reading more", 4, read(in, text, sizeof text));
	must(fstat(in, &after));
	same("links of the FIFO", 0, after.st_nlink);
	same("its mode", S_IFIFO | 0640, after.st_mode);
	close(out);
	same("reading without writers", 0, read(in, text, sizeof text));
	same("the symbolic link", 7, readlinkat(symbolic, "", text, sizeof text));
	expect(!memcmp(text, "nowhere", 7), "it leads to %.20s", text);
	must(fstat(device, &after));
	same("the device", makedev(1, 5), after.st_rdev);
	same("its mode", S_IFCHR | 0640, after.st_mode);
	same("reading from it", 7, read(device, text, 7));
	expect(!memcmp(text, (char[7]){0}, 7), "it gives %.7s", text);
	return report();
}

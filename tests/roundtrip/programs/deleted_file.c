/* Files removed while open: two opens of one, sparse, large, of another owner, with a hard link left, in a removed directory whose name is
   taken, O_TMPFILE, also for writing only, and with a name by now. */
#include "wait.h"
#include <sys/xattr.h>

enum { MEGABYTE = 1 << 20 };
static char block[MEGABYTE];

static void goes_by(int file, const char *name) {
	char link[64], found[512] = "", expected[512];
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	must(readlink(link, found, sizeof found - 1));
	snprintf(expected, sizeof expected, "%s (deleted)", name);
	expect(!strcmp(found, expected), "%s has become %s", expected, found);
}

static int removed(const char *name, int flags) {
	int file = must(open(in_work(name), flags | O_CREAT | O_EXCL, 0600));
	must(unlink(in_work(name)));
	return file;
}

int main(void) {
	struct stat before[2], after;
	char text[64] = "";
	int file = must(open(in_work("deleted"), O_RDWR | O_CREAT | O_EXCL, 0600)), again = must(open(in_work("deleted"), O_RDONLY | O_NONBLOCK));
	must(write(file, "0123456789abcdef", 16));
	must(lseek(file, 4, SEEK_SET));
	must(lseek(again, 8, SEEK_SET));
	must(fchown(file, 1234, 4321));
	must(fchmod(file, 02751));
	must(fsetxattr(file, "user.frog", "cold", 4, 0));
	must(futimens(file, (struct timespec[2]){{900000000, 4}, {1000000000, 5}}));
	must(unlink(in_work("deleted")));
	int sparse = removed("sparse", O_RDWR);
	must(ftruncate(sparse, 3l << 40));
	must(pwrite(sparse, "in the middle", 13, 1l << 40));
	int large = removed("large", O_RDWR | O_APPEND);
	for (int i = 0; i < 24; i++) {
		fill(block, MEGABYTE, i);
		must(write(large, block, MEGABYTE));
	}
	int linked = must(open(in_work("one name"), O_RDWR | O_CREAT, 0600));
	must(link(in_work("one name"), in_work("other name")));
	must(unlink(in_work("one name")));
	must(mkdir(in_work("gone"), 0700));
	must(mkdir(in_work("gone/too"), 0700));
	int below = removed("gone/too/file", O_WRONLY | O_CLOEXEC);
	must(rmdir(in_work("gone/too")));
	must(rmdir(in_work("gone")));
	int taken = removed("taken", O_RDWR);
	close(must(open(in_work("taken"), O_RDWR | O_CREAT | O_EXCL, 0600)));
	int path = must(open(in_work("taken"), O_PATH));
	must(unlink(in_work("taken")));
	close(must(open(in_work("taken"), O_RDWR | O_CREAT | O_EXCL, 0600)));
	int in_tmpfs = must(open("/tmp/deleted", O_RDWR | O_CREAT, 0600));
	must(write(in_tmpfs, "tmpfs", 5));
	must(unlink("/tmp/deleted"));
	int nameless = must(open(in_work("."), O_TMPFILE | O_RDWR, 0600));
	must(write(nameless, "nameless", 8));
	must(mkdir(in_work("elsewhere"), 0700));
	int displaced = removed("elsewhere/file", O_RDWR);
	must(write(displaced, "displaced", 9));
	must(rmdir(in_work("elsewhere")));
	close(must(open(in_work("elsewhere"), O_RDWR | O_CREAT | O_EXCL, 0600)));
	int written = must(open(in_work("."), O_TMPFILE | O_WRONLY, 0600)), got_name = must(open(in_work("."), O_TMPFILE | O_RDWR, 0600));
	must(write(written, "written", 7));
	snprintf(text, sizeof text, "/proc/self/fd/%d", got_name);
	must(linkat(AT_FDCWD, text, AT_FDCWD, in_work("its name"), AT_SYMLINK_FOLLOW));
	int written_status = fcntl(written, F_GETFL);
	int status = fcntl(nameless, F_GETFL), flags = fcntl(again, F_GETFL);
	must(fstat(file, before));
	must(fstat(sparse, before + 1));

	freeze_here();
	spoil(must(fremovexattr(file, "user.frog")););

	must(fstat(file, &after));
	same("links", 0, after.st_nlink);
	same("size", 16, after.st_size);
	same("mode", before->st_mode, after.st_mode);
	same("owner", 1234, after.st_uid);
	same("group", 4321, after.st_gid);
	same("device", before->st_dev, after.st_dev);
	same("modification", before->st_mtim.tv_sec, after.st_mtim.tv_sec);
	same("its nanoseconds", 5, after.st_mtim.tv_nsec);
	same("access", before->st_atim.tv_sec, after.st_atim.tv_sec);
	same("attribute", 4, fgetxattr(file, "user.frog", text, sizeof text));
	same("position", 4, lseek(file, 0, SEEK_CUR));
	same("position of the other", 8, lseek(again, 0, SEEK_CUR));
	same("flags of the other", flags, fcntl(again, F_GETFL));
	same("writing", 2, write(file, "XY", 2));
	same("reading what the other wrote", 16, pread(again, text, sizeof text, 0));
	expect(!memcmp(text, "0123XY6789abcdef", 16), "it holds %.16s", text);
	goes_by(file, in_work("deleted"));
	expect(access(in_work("deleted"), F_OK) != 0, "it has a name again");

	must(fstat(sparse, &after));
	same("size of the sparse one", 3l << 40, after.st_size);
	same("its blocks", before[1].st_blocks, after.st_blocks);
	same("reading from it", 13, pread(sparse, text, 13, 1l << 40));
	expect(!memcmp(text, "in the middle", 13), "it holds %.13s", text);
	int wrong = 0;
	for (int i = 0; i < 24; i++)
		wrong += pread(large, block, MEGABYTE, i * MEGABYTE) != MEGABYTE || !is_filled(block, MEGABYTE, i);
	same("wrong megabytes", 0, wrong);
	same("position at the end of the large one", 24 * MEGABYTE, lseek(large, 0, SEEK_CUR));

	must(write(linked, "linked", 6));
	int other = must(open(in_work("other name"), O_RDONLY));
	same("reading by the other name", 6, read(other, text, 6));
	must(fstat(linked, &after));
	same("links of the linked one", 1, after.st_nlink);
	goes_by(linked, in_work("one name"));
	expect(access(in_work("one name"), F_OK) != 0, "it has the name again");

	goes_by(below, in_work("gone/too/file"));
	same("close-on-exec below", FD_CLOEXEC, fcntl(below, F_GETFD));
	expect(access(in_work("gone"), F_OK) != 0, "the directory above is there again");
	must(fstat(taken, &after));
	same("links of the one whose name is taken", 0, after.st_nlink);
	must(fstat(path, &after));
	same("links of the O_PATH one", 0, after.st_nlink);
	must(stat(in_work("taken"), &after));
	same("links of the one that took it", 1, after.st_nlink);
	same("reading in the tmpfs", 5, pread(in_tmpfs, text, 8, 0));
	goes_by(in_tmpfs, "/tmp/deleted");

	same("reading the displaced one", 9, pread(displaced, text, sizeof text, 0));
	must(stat(in_work("elsewhere"), &after));
	expect(S_ISREG(after.st_mode), "what took the name of its directory is another");
	must(write(got_name, "named", 5));
	int by_name = must(open(in_work("its name"), O_RDONLY));
	same("reading by the name that it got", 5, read(by_name, text, sizeof text));
	same("flags of the one for writing", written_status, fcntl(written, F_GETFL));
	snprintf(text, sizeof text, "/proc/self/fd/%d", written);
	int read_again = must(open(text, O_RDONLY));
	same("reading what was written", 7, read(read_again, text, sizeof text));
	same("flags of the nameless one", status, fcntl(nameless, F_GETFL));
	snprintf(text, sizeof text, "/proc/self/fd/%d", nameless);
	same("giving it a name", 0, linkat(AT_FDCWD, text, AT_FDCWD, in_work("named"), AT_SYMLINK_FOLLOW));
	int named = must(open(in_work("named"), O_RDONLY));
	same("reading by that", 8, read(named, text, sizeof text));
	return report();
}

/* Files that a mount hides, which was made while they were open: regular ones, a directory, in a tmpfs of the container's own and elsewhere. */
// capabilities: CAP_SYS_ADMIN
#include "wait.h"
#include <sys/mount.h>

static void goes_by(int file, const char *name) {
	char link[64], found[256] = "";
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	must(readlink(link, found, sizeof found - 1));
	expect(!strcmp(found, name), "%s is %s", name, found);
}

int main(void) {
	char text[16] = "";
	struct stat before, after;
	must(mkdir(in_work("place"), 0755));
	int file = must(open(in_work("place/file"), O_RDWR | O_CREAT, 0640)), own = must(open("/tmp/own", O_RDWR | O_CREAT | O_APPEND, 0600));
	int directory = must(open(in_work("place"), O_RDONLY | O_DIRECTORY)), by_path = must(open("/tmp", O_PATH));
	must(write(file, "below", 5));
	must(write(own, "own", 3));
	must(fstat(file, &before));
	must(mount("tmpfs", in_work("place"), "tmpfs", 0, NULL));
	must(mount("tmpfs", "/tmp", "tmpfs", 0, NULL));
	int above = must(open(in_work("place/file"), O_RDWR | O_CREAT, 0600));
	must(write(above, "above", 5));

	freeze_here();
	spoil(must(ftruncate(own, 0)););

	same("position", 5, lseek(file, 0, SEEK_CUR));
	expect(pread(file, text, 16, 0) == 5 && !memcmp(text, "below", 5), "the hidden file holds %.5s", text);
	expect(pread(above, text, 16, 0) == 5 && !memcmp(text, "above", 5), "the other file holds %.5s", text);
	expect(pread(own, text, 16, 0) == 3 && !memcmp(text, "own", 3), "the tmpfs's file holds %.3s", text);
	goes_by(file, "/work/place/file");
	goes_by(own, "/tmp/own");
	same("flags", O_APPEND, fcntl(own, F_GETFL) & O_APPEND);
	expect(faccessat(directory, "file", F_OK, 0) == 0 && faccessat(by_path, "own", F_OK, 0) == 0, "the hidden directories are others");
	expect(access("/tmp/own", F_OK) == -1, "the tmpfs isn't hidden");
	must(fstat(file, &after));
	must(close(above) | umount(in_work("place")));
	must(stat(in_work("place/file"), &before));
	expect(before.st_ino == after.st_ino && before.st_dev == after.st_dev, "what was hidden is another file");
	return report();
}

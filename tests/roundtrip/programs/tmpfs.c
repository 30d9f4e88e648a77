/* What is in a tmpfs of the container: files, links, modes, owners, times, holes, FIFOs, sockets, directories. */
// arguments: /dev/shm | /tmp | /dev
#include "wait.h"
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static struct stat was[8], is;
static const char *names[] = {"file", "hard", "sparse", "symlink", "fifo", "directory", "directory/inside", "device"};

int main(int count, char **arguments) {
	static char page[4096], found[4096];
	must(chdir(count > 1 ? arguments[1] : "/tmp"));
	fill(page, sizeof page, 1);
	umask(0);
	must(mkdir("directory", 01751));
	int file = must(open("file", O_RDWR | O_CREAT, 04640)), sparse = must(open("sparse", O_RDWR | O_CREAT, 0400));
	must(write(file, page, 4000));
	must(link("file", "hard"));
	must(pwrite(sparse, page, 4096, 50 << 20));
	must(ftruncate(sparse, 100 << 20));
	must(symlink("../where (it) points", "symlink"));
	must(lchown("symlink", 11, 12));
	must(mkfifo("fifo", 0611));
	must(mknod("device", S_IFCHR | 0666, makedev(1, 3)));
	close(must(open("directory/inside", O_WRONLY | O_CREAT, 0600)));
	must(chown("directory/inside", 1234, 2345));
	bool attributes = setxattr("file", "user.colour", "green\0brown", 11, 0) == 0; /* tmpfs has them since Linux 6.6 */
	close(sparse), close(file);
	for (int i = 0; i < 8; i++)
		if (i != 3)
			must(utimensat(AT_FDCWD, names[i], (struct timespec[]){{i + 100, i}, {i + 1000, 5 * i}}, 0));
	for (int i = 0; i < 8; i++)
		must(lstat(names[i], &was[i]));
	freeze_here();
	spoil(must(chmod("fifo", 0600)); must(unlink("hard")); must(link("sparse", "hard")););
	for (int i = 0; i < 8; i++) {
		if (lstat(names[i], &is) != 0) {
			differs("%s has gone", names[i]);
			continue;
		}
		expect(is.st_mode == was[i].st_mode, "%s: mode %o is %o", names[i], was[i].st_mode, is.st_mode);
		expect(is.st_uid == was[i].st_uid && is.st_gid == was[i].st_gid, "%s: owner is %d %d", names[i], is.st_uid, is.st_gid);
		expect(is.st_nlink == was[i].st_nlink, "%s: %ld links", names[i], is.st_nlink);
		expect(is.st_mtim.tv_sec == was[i].st_mtim.tv_sec && is.st_mtim.tv_nsec == was[i].st_mtim.tv_nsec, "%s: another mtime", names[i]);
		expect(is.st_size == was[i].st_size && is.st_rdev == was[i].st_rdev, "%s: size %ld, device %lx", names[i], is.st_size, is.st_rdev);
		expect(is.st_blocks <= was[i].st_blocks, "%s: %ld blocks", names[i], is.st_blocks);
	}
	must(stat("hard", &is));
	ino_t inode = is.st_ino;
	must(stat("file", &is));
	expect(inode == is.st_ino, "a hard link is another file");
	int again = must(open("file", O_RDONLY));
	expect(read(again, found, 4096) == 4000 && !memcmp(found, page, 4000), "file holds something else");
	again = must(open("sparse", O_RDONLY));
	expect(pread(again, found, 4096, 50 << 20) == 4096 && !memcmp(found, page, 4096), "sparse holds something else");
	memset(found, 0, sizeof found);
	expect(readlink("symlink", found, 100) == 20 && !strcmp(found, "../where (it) points"), "the symlink points at %s", found);
	expect(!attributes || (getxattr("file", "user.colour", found, 100) == 11 && !memcmp(found, "green\0brown", 11)), "user.colour is lost");
	return report();
}

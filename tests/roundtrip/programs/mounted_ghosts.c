/* What is mounted (mount --bind) and was deleted since is still what it was, also where else it is open or mapped. */
// arguments: file | directory | twice | covered | nowhere | above | linked | kinds | moved | copied | nested
// capabilities: CAP_SYS_ADMIN CAP_MKNOD
#include "files.h"
#include "mounts.h"
#include <sys/sysmacros.h>

static struct mounts was, is;
static int before = -1, through = -1, held = -1, inner[2];
static char *map;

static void bind(const char *from, const char *to) {
	struct stat found;
	must(stat(from, &found));
	if (S_ISDIR(found.st_mode))
		mkdir(to, 0755);
	else
		close(must(open(to, O_CREAT, 0600)));
	must(mount(from, to, NULL, MS_BIND, NULL));
}

static void leads(int file, const char *to) {
	char link[40], found[200] = "";
	sprintf(link, "/proc/self/fd/%d", file);
	must(readlink(link, found, 199));
	expect(!strcmp(found, to), "is %s, not %s", found, to);
}

static void make(const char *what) {
	if (!strcmp(what, "file") || !strcmp(what, "copied")) {
		put("/run/from", "a deleted file");
		must(chmod("/run/from", 0741));
		bind("/run/from", "/tmp/to");
		before = must(open("/run/from", O_RDWR));
		through = must(open("/tmp/to", O_RDONLY));
		map = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, before, 0));
		int other = must(open("/tmp/to", O_RDWR));
		char *seen = must(mmap(NULL, 4096, PROT_READ, MAP_SHARED, other, 0));
		expect(seen[0] == 'a', "not mapped");
		close(other);
		must(lseek(through, 2, SEEK_SET));
		must(unlink("/run/from"));
		must(mount(NULL, "/tmp/to", NULL, MS_REMOUNT | MS_BIND | MS_NOEXEC | MS_NOATIME, NULL));
	} else if (!strcmp(what, "directory")) {
		must(mkdir("/run/from", 0711)), must(chmod("/run/from", 01731));
		bind("/run/from", "/tmp/to");
		must(rmdir("/run/from"));
		must(mkdir("/run/other", 0755));
		bind("/run/other", "/tmp/other");
		must(chdir("/tmp/other"));
		must(rmdir("/run/other"));
	} else if (!strcmp(what, "twice")) {
		put("/run/from", "once");
		bind("/run/from", "/tmp/one"), bind("/tmp/one", "/tmp/two");
		must(mount(NULL, "/tmp/two", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
		must(unlink("/run/from"));
		put("/run/from", "another");
	} else if (!strcmp(what, "covered")) {
		must(mkdir("/run/in", 0755)), must(mkdir("/cover", 0755));
		put("/run/in/from", "in what is covered"), put("/cover/from", "in what covers it");
		bind("/run/in/from", "/tmp/to");
		before = must(open("/run/in/from", O_RDONLY));
		must(unlink("/run/in/from"));
		bind("/cover", "/run/in");
	} else if (!strcmp(what, "nowhere")) {
		must(mkdir("/run/fs", 0755)), must(mount("fs", "/run/fs", "tmpfs", 0, "size=1m"));
		must(mkdir("/run/fs/d", 0755));
		put("/run/fs/d/from", "of no other mount");
		bind("/run/fs/d/from", "/tmp/to");
		must(unlink("/run/fs/d/from")), must(umount("/run/fs"));
	} else if (!strcmp(what, "above")) {
		must(mkdir("/run/a", 0755)), must(mkdir("/run/a/b", 0755));
		put("/run/a/b/from", "all above is gone");
		bind("/run/a/b/from", "/tmp/to");
		must(unlink("/run/a/b/from")), must(rmdir("/run/a/b")), must(rmdir("/run/a"));
	} else if (!strcmp(what, "linked")) {
		put("/run/from", "two names");
		must(link("/run/from", "/run/name"));
		bind("/run/from", "/tmp/to");
		must(unlink("/run/from"));
	} else if (!strcmp(what, "kinds")) {
		must(mkfifo("/run/fifo", 0622)), must(mknod("/run/null", S_IFCHR | 0666, makedev(1, 3)));
		bind("/run/fifo", "/tmp/fifo"), bind("/run/null", "/tmp/null");
		before = must(open("/run/fifo", O_RDWR)), through = must(open("/tmp/fifo", O_RDWR)), held = must(open("/tmp/null", O_RDWR));
		must(write(before, "queued", 6));
		must(unlink("/run/fifo")), must(unlink("/run/null"));
	} else if (!strcmp(what, "moved")) {
		must(mkdir("/tmp/in", 0755));
		put("/run/from", "moved about"), bind("/run/from", "/tmp/in/to");
		must(unlink("/run/from"));
		must(rename("/tmp/in", "/tmp/elsewhere"));
	}
	if (!strcmp(what, "copied") || !strcmp(what, "nested")) {
		int ready[2];
		char byte;
		must(pipe(inner)), must(pipe(ready));
		if (!must(fork())) {
			close(inner[1]);
			must(unshare(CLONE_NEWNS)), must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
			if (what[0] == 'n') {
				put("/run/from", "only here");
				bind("/run/from", "/tmp/to");
				must(unlink("/run/from"));
			}
			must(write(ready[1], "x", 1));
			if (read(inner[0], &byte, 1) != 1)
				_exit(1); /* the container is ended */
			look("/tmp/to", what[0] == 'n' ? "only here" : "A deleted file");
			_exit(0);
		}
		must(read(ready[0], &byte, 1));
		close(inner[0]), close(ready[0]), close(ready[1]);
	}
}

static void verify(const char *what) {
	char text[50] = "";
	struct stat one, other;
	if (!strcmp(what, "file") || !strcmp(what, "copied")) {
		expect(pread(before, text, 49, 0) == 14, "another length");
		leads(before, "/run/from (deleted)"), leads(through, "/tmp/to (deleted)");
		must(fstat(before, &one)), must(stat("/tmp/to", &other));
		expect(one.st_ino == other.st_ino && one.st_dev == other.st_dev && one.st_nlink == 0, "two files");
		expect(one.st_mode == (S_IFREG | 0741), "mode %o", one.st_mode);
		map[0] = 'A';
		look("/tmp/to", "A deleted file");
		expect(read(through, text, 49) == 12 && !strncmp(text, "deleted file", 12), "reads %s", text);
		expect(access("/run/from", F_OK) != 0, "has its name again");
	} else if (!strcmp(what, "directory")) {
		must(stat("/tmp/to", &one));
		expect(one.st_mode == (S_IFDIR | 01731) && one.st_nlink == 0, "mode %o, %d links", one.st_mode, (int)one.st_nlink);
		expect(open("/tmp/to/file", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT, "isn't deleted");
		must(stat(".", &one)), must(stat("/tmp/other", &other));
		expect(one.st_ino == other.st_ino, "stands elsewhere");
	} else if (!strcmp(what, "twice")) {
		put("/tmp/one", "twice"), look("/tmp/two", "twice"), look("/run/from", "another");
		expect(open("/tmp/two", O_RDWR) == -1 && errno == EROFS, "can be written to");
	} else if (!strcmp(what, "covered")) {
		look("/tmp/to", "in what is covered"), look("/run/in/from", "in what covers it");
		must(fstat(before, &one)), must(stat("/tmp/to", &other));
		expect(one.st_ino == other.st_ino, "two files");
	} else if (!strcmp(what, "nowhere"))
		look("/tmp/to", "of no other mount");
	else if (!strcmp(what, "above")) {
		look("/tmp/to", "all above is gone");
		expect(access("/run/a", F_OK) != 0, "is back");
	} else if (!strcmp(what, "linked"))
		put("/run/name", "TWO"), look("/tmp/to", "TWO names");
	else if (!strcmp(what, "kinds")) {
		expect(read(through, text, 49) == 6 && !strcmp(text, "queued"), "read %s", text);
		expect(write(held, "x", 1) == 1, "can't write to null");
		expect(access("/run/fifo", F_OK) != 0, "is back");
	} else if (!strcmp(what, "moved"))
		look("/tmp/elsewhere/to", "moved about");
	if (!strcmp(what, "copied") || !strcmp(what, "nested")) {
		int status;
		must(write(inner[1], "x", 1));
		expect(wait(&status) > 0 && status == 0, "ended with %#x", status);
	}
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "file";
	umask(0022);
	make(what);
	read_mounts(&was);
	freeze_here();
	spoil(must(mount("spoiled", "/dev/shm", "tmpfs", 0, NULL)););
	read_mounts(&is);
	/* One is mounted by its other name then, and another has the name by now. */
	if (strcmp(what, "linked") && strcmp(what, "twice"))
		expect_same_mounts(&was, &is);
	same("mounts", was.count, is.count);
	verify(what);
	return report();
}

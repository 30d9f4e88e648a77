/* What has no name in a mount namespace inside: deleted files, with and without a name left to them, also mapped or executed, directories,
   FIFOs with something in them; each in a tmpfs that only this namespace has and on the container's root; in a thread's, too. */
// arguments: copied | pivoted | thread | sandbox
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT
#include "mounts.h"
#include "namespaces.h"

struct things {
	int deleted, linked, nameless, directory, fifo, gone_fifo, root;
	char *shared, *private;
	char prefix[64];
};

static const char *in(const struct things *all, const char *name) {
	static __thread char path[2][128];
	static __thread int turn;
	turn = !turn;
	snprintf(path[turn], 128, "%s/%s", all->prefix, name);
	return path[turn];
}

static int file(const char *path) {
	int made = must(open(path, O_RDWR | O_CREAT | O_EXCL, 0640));
	must(ftruncate(made, 8192));
	must(pwrite(made, "ghost", 5, 0));
	return made;
}

static int fifo(const char *path) {
	must(mkfifo(path, 0600));
	int made = must(open(path, O_RDWR));
	must(write(made, "in it", 5));
	return made;
}

static void make(struct things *all, bool working) {
	all->deleted = file(in(all, "deleted"));
	all->shared = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, all->deleted, 0));
	all->private = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, all->deleted, 0));
	all->private[4096] = 'p';
	must(unlink(in(all, "deleted")));
	all->linked = file(in(all, "linked"));
	must(link(in(all, "linked"), in(all, "another name")));
	must(unlink(in(all, "linked")));
	all->nameless = must(open(in(all, "."), O_TMPFILE | O_RDWR, 0600));
	must(write(all->nameless, "nameless", 8));
	all->fifo = fifo(in(all, "fifo"));
	all->gone_fifo = fifo(in(all, "gone fifo"));
	must(unlink(in(all, "gone fifo")));
	must(mkdir(in(all, "directory"), 0711));
	all->directory = must(open(in(all, "directory"), O_RDONLY | O_DIRECTORY));
	if (working)
		must(chdir(in(all, "directory")));
	must(rmdir(in(all, "directory")));
}

static void check(int who, const struct things *all) {
	char text[128] = "", path[128] = "", expected[160];
	struct stat found;
	spoil(must(pwrite(all->deleted, "x", 1, 0)););
	same("reading what is deleted", 5, pread(all->deleted, text, 5, 0));
	expect(!strcmp(text, "ghost"), "%d: it holds %s", who, text);
	must(fstat(all->deleted, &found));
	same("its links", 0, found.st_nlink);
	same("its mode", S_IFREG | 0640, found.st_mode);
	snprintf(path, sizeof path, "/proc/self/fd/%d", all->deleted);
	snprintf(expected, sizeof expected, "%s (deleted)", in(all, "deleted"));
	memset(text, 0, sizeof text), readlink(path, text, sizeof text - 1);
	expect(!strcmp(text, expected), "%d: it was %s, is %s", who, expected, text);
	all->shared[0] = 'G';
	same("reading what a mapping has changed", 1, pread(all->deleted, text, 1, 0));
	same("that", 'G', text[0]);
	same("the private mapping", 'G', all->private[0]);
	same("its own page", 'p', all->private[4096]);
	must(pwrite(all->linked, "G", 1, 0));
	int other = must(open(in(all, "another name"), O_RDONLY));
	same("reading by the other name", 1, read(other, text, 1));
	same("that", 'G', text[0]);
	close(other);
	expect(access(in(all, "linked"), F_OK) != 0, "%d: it has its name again", who);
	same("reading the nameless one", 8, pread(all->nameless, text, 8, 0));
	snprintf(path, sizeof path, "/proc/self/fd/%d", all->nameless);
	same("giving it a name", 0, linkat(AT_FDCWD, path, AT_FDCWD, in(all, "named"), AT_SYMLINK_FOLLOW));
	same("reading the FIFO", 5, read(all->fifo, text, sizeof text));
	other = must(open(in(all, "fifo"), O_WRONLY | O_NONBLOCK));
	must(write(other, "more", 4));
	same("reading what came by its name", 4, read(all->fifo, text, sizeof text));
	close(other);
	same("reading the deleted FIFO", 5, read(all->gone_fifo, text, sizeof text));
	must(fstat(all->directory, &found));
	same("links of the directory", 0, found.st_nlink);
	same("its mode", S_IFDIR | 0711, found.st_mode);
}

static void prefixed(struct things *all, const char *where, int who, bool working) {
	snprintf(all->prefix, sizeof all->prefix, "%s/%d", where, who);
	must(mkdir(all->prefix, 0755));
	make(all, working);
}

static void leave_for(const char *what) {
	must(unshare(CLONE_NEWNS));
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	must(mount("inner", "/run", "tmpfs", 0, "size=4m"));
	if (what[0] != 'p')
		return;
	for (const char **one = (const char *[]){"work", "programs", "proc", "old", NULL}; *one; one++) {
		char path[64], from[64];
		snprintf(path, sizeof path, "/run/%s", *one), snprintf(from, sizeof from, "/%s", *one);
		must(mkdir(path, 0755));
		if (**one != 'o')
			must(mount(from, path, NULL, MS_BIND, NULL));
	}
	must(mkdir("/run/run", 0755));
	must(chdir("/run"));
	must(syscall(SYS_pivot_root, ".", "old"));
	must(chdir("/")), must(umount2("/old", MNT_DETACH)), must(rmdir("/old"));
}

static void inside(int who, const char *what) {
	struct things in_tmpfs, on_root;
	char directory[128];
	leave_for(what);
	prefixed(&on_root, "/work", who, false), prefixed(&in_tmpfs, "/run", who, what[0] != 't');
	note_place(who, "mnt");
	wait_for("check");
	check_place(who, "mnt");
	check(who, &on_root), check(who, &in_tmpfs);
	expect(what[0] == 't' || (getcwd(directory, sizeof directory) == NULL && errno == ENOENT), "%d: it is in %s", who, directory);
}

static void *thread(void *what) {
	must(unshare(CLONE_FS));
	inside(1, what);
	return NULL;
}

static void map(const char *name, const char *text) {
	char path[64];
	snprintf(path, sizeof path, "/proc/self/%s", name);
	int maps = must(open(path, O_WRONLY));
	must(write(maps, text, strlen(text)));
	close(maps);
}

int main(int count, char **arguments) {
	char *what = arguments[count - 1];
	umask(0022);
	prepare_places();
	note_place(0, "mnt");
	if (what[0] == 't') {
		pthread_t other;
		must(pthread_create(&other, NULL, thread, what));
		await(&places[1].noted);
		freeze_here();
		pthread_join(other, NULL);
		return report();
	}
	pid_t child = must(fork());
	if (child == 0) {
		if (what[0] == 's') {
			must(unshare(CLONE_NEWUSER));
			map("setgroups", "deny"), map("uid_map", "0 0 1\n"), map("gid_map", "0 0 1\n");
		}
		inside(1, what);
		_exit(0);
	}
	await(&places[1].noted);
	freeze_here();
	join(child);
	check_place(0, "mnt");
	compare_places("mnt", 2);
	return report();
}

/* Mounts made, moved, changed and taken away inside: the table is the same, and so are files below and above. */
// arguments: tmpfs | bind | part | covered | file | kinds | remount | removed | reused | gone | moved | shared | slave | unbindable | overlay | layers | volatile
// capabilities: CAP_SYS_ADMIN
#include "files.h"
#include "mounts.h"

static struct mounts was, is;
static int opened = -1, removed = -1;

static void tmpfs(const char *path, const char *options) {
	if (mkdir(path, 0755) != 0)
		must(errno == EEXIST ? 0 : -1);
	must(mount("a source", path, "tmpfs", MS_NOSUID, options));
}

static void bind(const char *from, const char *to) {
	mkdir(to, 0755);
	must(mount(from, to, NULL, MS_BIND, NULL));
}

static void spread(const char *path, unsigned long how) { must(mount(NULL, path, NULL, how, NULL)); }

static unsigned long mount_id(const char *path) {
	struct statx found;
	must(statx(AT_FDCWD, path, 0, STATX_MNT_ID, &found));
	return found.stx_mnt_id;
}

static void make(const char *what) {
	if (!strcmp(what, "tmpfs")) {
		tmpfs("/tmp/m", "size=1m,nr_inodes=100,mode=1750,uid=5");
		put("/tmp/m/file", "within");
		tmpfs("/tmp/m/deeper", "");
		put("/tmp/m/deeper/file", "deeper");
		opened = must(open("/tmp/m/deeper/file", O_RDWR));
		tmpfs("/run/read-only", "");
		put("/run/read-only/file", "before");
		must(mount(NULL, "/run/read-only", NULL, MS_REMOUNT | MS_RDONLY, NULL));
	} else if (!strcmp(what, "bind")) {
		must(mkdir("/run/from", 0755));
		put("/run/from/file", "in the root");
		bind("/run/from", "/tmp/to");
		bind("/tmp", "/run/tmp");
		must(mount(NULL, "/tmp/to", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC | MS_NOATIME, NULL));
	} else if (!strcmp(what, "part")) { /* of a tmpfs that is mounted nowhere else */
		tmpfs("/tmp/whole", "");
		must(mkdir("/tmp/whole/a", 0755)), must(mkdir("/tmp/whole/a/part", 0711));
		put("/tmp/whole/a/part/file", "a part");
		bind("/tmp/whole/a/part", "/tmp/part");
		must(umount("/tmp/whole"));
	} else if (!strcmp(what, "covered")) {
		put("/tmp/file", "below");
		tmpfs("/tmp/deep", "");
		put("/tmp/deep/file", "below, deep");
		tmpfs("/tmp", "");
		put("/tmp/file", "above");
		tmpfs("/tmp", "");
		put("/tmp/file", "top");
	} else if (!strcmp(what, "file")) {
		put("/tmp/from", "a file");
		put("/tmp/to", "hidden");
		must(mount("/tmp/from", "/tmp/to", NULL, MS_BIND, NULL));
		must(mount("/dev/null", "/tmp/from", NULL, MS_BIND, NULL));
	} else if (!strcmp(what, "kinds")) {
		const char *kinds[] = {"proc", "sysfs", "mqueue", "devpts", "ramfs"};
		for (int i = 0; i < 5; i++) {
			char path[100];
			sprintf(path, "/tmp/%s", kinds[i]);
			must(mkdir(path, 0755));
			must(mount(kinds[i], path, kinds[i], MS_NOSUID | MS_NOEXEC, i == 3 ? "mode=0622,ptmxmode=0666" : i == 0 ? "hidepid=2" : NULL));
		}
		put("/tmp/ramfs/file", "in memory");
		for (const char **rare = (const char *[]){"fusectl", "bpf", "pstore", "devtmpfs", "binfmt_misc", "tracefs", NULL}; *rare; rare++) {
			char path[100];
			sprintf(path, "/tmp/%s", *rare);
			must(mkdir(path, 0755));
			expect(mount(*rare, path, *rare, MS_NOSUID, NULL) == 0 || errno == ENODEV, "cannot mount %s: %s", *rare, strerror(errno));
		}
	} else if (!strcmp(what, "remount")) {
		must(mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_NODEV | MS_NOEXEC, "size=3m"));
		must(mount(NULL, "/dev/shm", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NOATIME, NULL));
		must(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	} else if (!strcmp(what, "removed")) {
		must(umount2("/sys", MNT_DETACH)), must(umount("/dev/shm")), must(umount("/tmp"));
		tmpfs("/tmp", "size=2m");
		put("/tmp/file", "another");
	} else if (!strcmp(what, "reused")) { /* the kernel gives the lowest id that is free */
		unsigned long id = mount_id("/dev/shm");
		char path[20] = "";
		must(umount("/dev/shm"));
		for (int i = 0; i < 500 && (!*path || mount_id(path) != id); i++)
			sprintf(path, "/run/%d", i), tmpfs(path, "");
		expect(mount_id(path) == id, "the id of /dev/shm is not given again");
		must(mkdir("/run/here", 0755)), must(mount(path, "/run/here", NULL, MS_MOVE, NULL));
		put("/run/here/file", "under another's id");
	} else if (!strcmp(what, "gone")) {
		must(umount2("/dev", MNT_DETACH));
	} else if (!strcmp(what, "moved")) {
		put("/tmp/file", "in a moved one");
		must(mkdir("/run/tmp", 0755)), must(mount("/tmp", "/run/tmp", NULL, MS_MOVE, NULL));
		tmpfs("/run/tmp/above", "");
	} else if (!strcmp(what, "shared")) {
		spread("/", MS_REC | MS_SHARED);
		tmpfs("/run/one", "");
		bind("/run/one", "/tmp/other");
		must(mkdir("/run/one/in", 0755));
		tmpfs("/run/one/in", "");
		put("/tmp/other/in/file", "in both");
	} else if (!strcmp(what, "slave") || !strcmp(what, "unbindable")) {
		tmpfs("/run/one", "");
		spread("/run/one", MS_SHARED);
		must(mkdir("/run/one/in", 0755));
		bind("/run/one", "/run/two");
		bind("/run/one/in", "/run/three");
		spread("/run/two", MS_SLAVE), spread("/run/three", MS_SLAVE), spread("/run/two", MS_SHARED);
		bind("/run/two", "/run/four");
		spread("/run/four", MS_SLAVE);
		if (what[0] == 'u')
			spread("/run/three", MS_UNBINDABLE), spread("/dev/shm", MS_UNBINDABLE);
	} else if (!strcmp(what, "overlay")) {
		must(mkdir("/run/lower", 0755));
		put("/run/lower/file", "lower"), put("/run/lower/gone", "gone"), put("/run/lower/kept", "kept"), put("/run/lower/removed", "removed");
		tmpfs("/tmp/layers", "");
		must(mkdir("/tmp/layers/up", 0755)), must(mkdir("/tmp/layers/work", 0755)), must(mkdir("/o", 0755));
		must(mount("over", "/o", "overlay", 0, "lowerdir=/run/lower,upperdir=/tmp/layers/up,workdir=/tmp/layers/work"));
		must(unlink("/o/gone"));
		put("/o/file", "upper");
		opened = must(open("/o/kept", O_RDONLY)), removed = must(open("/o/removed", O_RDONLY));
		must(unlink("/o/removed"));
	} else if (!strcmp(what, "layers")) { /* one by one; and those that only hold data */
		tmpfs("/tmp/layers", "");
		for (const char **one = (const char *[]){"a", "b", "data", NULL}; *one; one++) {
			char path[100];
			sprintf(path, "/tmp/layers/%s", *one), must(mkdir(path, 0755));
			strcat(path, "/"), strcat(path, *one), put(path, *one);
		}
		must(mkdir("/o", 0755)), must(mkdir("/p", 0755));
		must(mount("by colons", "/o", "overlay", 0, "lowerdir=/tmp/layers/a:/tmp/layers/b::/tmp/layers/data,metacopy=on"));
		if (mount("one by one", "/p", "overlay", 0, "lowerdir+=/tmp/layers/a,lowerdir+=/tmp/layers/b,datadir+=/tmp/layers/data,metacopy=on") != 0)
			expect(errno == EINVAL, "cannot mount layers one by one: %s", strerror(errno)); /* Linux before 6.8 */
	} else if (!strcmp(what, "volatile")) {
		must(mkdir("/run/lower", 0755)), must(mkdir("/run/up", 0755)), must(mkdir("/run/work", 0755)), must(mkdir("/o", 0755));
		must(mount("over", "/o", "overlay", 0, "lowerdir=/run/lower,upperdir=/run/up,workdir=/run/work,volatile"));
		put("/o/file", "never synced");
	}
}

static void verify(const char *what) {
	struct statfs system;
	struct stat file;
	char text[10] = "";
	if (!strcmp(what, "tmpfs")) {
		look("/tmp/m/file", "within"), look("/tmp/m/deeper/file", "deeper"), look("/run/read-only/file", "before");
		expect(write(opened, "x", 1) == 1, "can't write");
		look("/tmp/m/deeper/file", "xeeper");
		expect(open("/run/read-only/file", O_RDWR) == -1 && errno == EROFS, "can be written to");
		must(stat("/tmp/m", &file)), must(statfs("/tmp/m", &system));
		expect(file.st_mode == (S_IFDIR | 01750) && file.st_uid == 5, "another owner or mode");
		expect(system.f_blocks * system.f_bsize == 1 << 20 && system.f_files == 100, "another size");
	} else if (!strcmp(what, "bind")) {
		look("/tmp/to/file", "in the root");
		put("/run/from/file", "changed"), look("/tmp/to/file", "changedroot");
	} else if (!strcmp(what, "part"))
		look("/tmp/part/file", "a part");
	else if (!strcmp(what, "covered")) {
		look("/tmp/file", "top"), must(umount("/tmp")), look("/tmp/file", "above"), must(umount("/tmp"));
		look("/tmp/file", "below"), look("/tmp/deep/file", "below, deep");
	} else if (!strcmp(what, "file"))
		look("/tmp/to", "a file"), look("/tmp/from", ""), must(umount("/tmp/to")), look("/tmp/to", "hidden");
	else if (!strcmp(what, "kinds")) {
		look("/tmp/ramfs/file", "in memory");
		expect(access("/tmp/proc/self/fd", F_OK) == 0 && access("/tmp/sysfs/class", F_OK) == 0 && open("/tmp/devpts/ptmx", O_RDWR) >= 0, "empty");
	}
	else if (!strcmp(what, "layers")) {
		look("/o/a", "a"), look("/o/b", "b");
		expect(access("/o/data", F_OK) != 0, "what only holds data is seen");
	} else if (!strcmp(what, "volatile"))
		put("/o/new", "new"), look("/o/file", "never synced"), look("/run/up/new", "new");
	else if (!strcmp(what, "removed"))
		look("/tmp/file", "another");
	else if (!strcmp(what, "reused"))
		look("/run/here/file", "under another's id");
	else if (!strcmp(what, "moved"))
		look("/run/tmp/file", "in a moved one");
	else if (!strcmp(what, "shared")) {
		look("/run/one/in/file", "in both"), look("/tmp/other/in/file", "in both");
		must(umount("/tmp/other/in"));
		expect(access("/run/one/in/file", F_OK) != 0, "it doesn't spread");
	} else if (!strcmp(what, "slave")) {
		must(mount("new", "/run/one/in", "tmpfs", 0, NULL)), put("/run/one/in/file", "new");
		look("/run/two/in/file", "new"), look("/run/three/file", "new"), look("/run/four/in/file", "new");
	} else if (!strcmp(what, "overlay")) {
		look("/o/file", "upper"), look("/o/kept", "kept");
		expect(access("/o/gone", F_OK) != 0, "is back");
		expect(read(opened, text, 9) == 4 && !strcmp(text, "kept"), "read %s", text);
		expect(pread(removed, text, 9, 0) == 7 && !strcmp(text, "removed"), "read %s", text);
		put("/o/new", "new"), look("/tmp/layers/up/new", "new");
	}
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "tmpfs";
	umask(0022);
	make(what);
	read_mounts(&was);
	freeze_here();
	spoil(must(mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_NODEV, NULL)););
	read_mounts(&is);
	expect_same_mounts(&was, &is);
	verify(what);
	return report();
}

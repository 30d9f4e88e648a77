/* Is where nothing leads any more: works in, or has mapped, what a mount hides, or what was taken away; opens a terminal where it is mounted; mounts layers that are others. */
#include "../programs/wait.h"
#include <pty.h>
#include <sys/mount.h>

static void tmpfs(const char *path) {
	mkdir(path, 0755);
	must(mount("tmpfs", path, "tmpfs", 0, NULL));
}

static void put(const char *path, const char *text) {
	int file = must(open(path, O_WRONLY | O_CREAT, 0755));
	must(write(file, text, strlen(text)));
	close(file);
}

static char *mapped(const char *path, int protection) {
	int file = must(open(path, O_RDWR));
	char *memory = must(mmap(NULL, 4096, protection, MAP_SHARED, file, 0));
	close(file);
	return memory;
}

static void bind_file(const char *from, const char *to) {
	put(to, "");
	must(mount(from, to, NULL, MS_BIND, NULL));
}

static void overlay(void) {
	tmpfs("/run/layers");
	must(mkdir("/run/layers/lower", 0755)), must(mkdir("/run/layers/upper", 0755)), must(mkdir("/run/layers/work", 0755)), must(mkdir("/run/over", 0755));
	put("/run/layers/lower/below", "below");
	must(mount("overlay", "/run/over", "overlay", 0, "lowerdir=/run/layers/lower,upperdir=/run/layers/upper,workdir=/run/layers/work"));
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "";
	char *memory = "below", text[6] = "";
	int ends[2];
	must(mkdir("/run/place", 0755));
	put("/run/place/file", "below");
	if (!strcmp(what, "covered-directory")) {
		must(chdir("/run/place"));
		tmpfs("/run/place");
	} else if (!strcmp(what, "detached-directory")) {
		tmpfs("/run/place");
		put("/run/place/file", "below");
		must(chdir("/run/place")), must(umount2("/run/place", MNT_DETACH));
	} else if (!strcmp(what, "covered-mapping")) {
		memory = mapped("/run/place/file", PROT_READ);
		tmpfs("/run/place");
		put("/run/place/file", "above");
	} else if (!strcmp(what, "forbidden-mapping")) {
		tmpfs("/run/place");
		put("/run/place/file", "below");
		memory = mapped("/run/place/file", PROT_READ | PROT_EXEC);
		must(mount(NULL, "/run/place", NULL, MS_REMOUNT | MS_BIND | MS_NOEXEC, NULL));
	} else if (!strcmp(what, "terminal")) {
		must(openpty(&ends[0], &ends[1], text, NULL, NULL) == 0 ? 0 : -1);
		bind_file("/dev/pts/0", "/run/terminal");
		must(open("/run/terminal", O_RDWR | O_NOCTTY));
	} else if (!strcmp(what, "layers-gone")) {
		overlay();
		must(umount2("/run/layers", MNT_DETACH));
	} else if (!strcmp(what, "other-layers")) {
		overlay();
		must(rename("/run/layers/lower", "/run/layers/before")), must(mkdir("/run/layers/lower", 0755));
	} else if (!strcmp(what, "pidfd-by-path")) {
		must(sprintf(text, "%d", (int)must(syscall(SYS_pidfd_open, getpid(), 0))));
		must(chdir("/proc/self/fd"));
		must(open(text, O_PATH));
		must(chdir("/"));
	} else
		return 2;
	freeze_here();
	expect(!memcmp(memory, "below", 5), "the mapping holds %.5s", memory);
	return report();
}

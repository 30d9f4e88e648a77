/* The first process has gone to another mount namespace than it began in: alone, with mounts of its own, with another one left behind. */
// arguments: alone | mounts | behind
// capabilities: CAP_SYS_ADMIN
#include "mounts.h"

static struct mounts was, is;

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "alone";
	char text[10] = "";
	pid_t child = 0;
	if (!strcmp(what, "behind") && !(child = must(fork()))) {
		wait_for("check");
		expect(access("/tmp/in/file", F_OK) != 0, "what was mounted elsewhere is seen");
		_exit(0);
	}
	if (count < 3) {
		must(unshare(CLONE_NEWNS)), must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
		if (!child) /* or what is executed would stay in a mount that nobody sees any more */
			must(execl(arguments[0], arguments[0], what, "again", NULL));
	} else /* what create has opened before is another file when it has been restored */
		must(close(0)), must(open("/dev/null", O_RDWR));
	if (strcmp(what, "alone")) {
		must(mkdir("/tmp/in", 0755)), must(mount("in", "/tmp/in", "tmpfs", MS_NOSUID, "size=1m"));
		must(mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID, NULL));
	}
	const char *path = strcmp(what, "alone") ? "/tmp/in/file" : "/tmp/file";
	int file = must(open(path, O_RDWR | O_CREAT, 0600));
	must(write(file, "text", 4));
	read_mounts(&was);
	freeze_here();
	spoil(must(pwrite(file, "T", 1, 0)););
	read_mounts(&is);
	expect_same_mounts(&was, &is);
	must(pread(file, text, 9, 0));
	expect(!strcmp(text, "text"), "the file holds %s", text);
	expect(access(path, F_OK) == 0, "the file is gone");
	if (child)
		join(child);
	return report();
}

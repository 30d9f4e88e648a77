/* A pid namespace that is bound to a file. */
#include "../programs/wait.h"
#include <sys/mount.h>

int main(void) {
	struct stat own, bound;
	close(must(open("/work/file", O_RDONLY | O_CREAT | O_CLOEXEC, 0)));
	must(mount("/proc/self/ns/pid", "/work/file", NULL, MS_BIND, NULL));
	freeze_here();
	must(stat("/proc/self/ns/pid", &own)), must(stat("/work/file", &bound));
	expect(own.st_ino == bound.st_ino, "another namespace is bound");
	return report();
}

/* A first process that has gone to a root directory of its own, with files, a mapping and a watch outside of that. */
#include "wait.h"
#include <sys/inotify.h>

int main(void) {
	union { struct inotify_event event; char bytes[4096]; } found = {0};
	char text[16] = "";
	int watcher = must(inotify_init1(IN_NONBLOCK)), outside = must(open("/", O_RDONLY | O_DIRECTORY));
	must(mkdir(in_work("jail"), 0755));
	must(mkdir(in_work("jail/cell"), 0755));
	must(mkdir(in_work("outside"), 0755));
	int file = must(open(in_work("outside/file"), O_RDWR | O_CREAT, 0644)), gone = must(open("/tmp/gone", O_RDWR | O_CREAT, 0644));
	must(write(file, "file", 4));
	must(write(gone, "gone", 4));
	must(unlink("/tmp/gone"));
	char *mapped = must(mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0));
	int number = must(inotify_add_watch(watcher, in_work("outside"), IN_CREATE));
	must(chroot(in_work("jail")));
	must(chdir("/cell"));

	close(must(openat(outside, "work/ready", O_WRONLY | O_CREAT, 0666)));
	while (faccessat(outside, "work/check", F_OK, 0) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	bool jailed = access("/cell", F_OK) == 0 && access("/work", F_OK) != 0, in_cell = access("../cell", F_OK) == 0;
	must(fchdir(outside));
	must(chroot("."));
	spoil(must(lseek(file, 0, SEEK_SET)););

	expect(jailed && in_cell, "the jail is open");
	same("position in the file outside", 4, lseek(file, 0, SEEK_CUR));
	expect(!memcmp(mapped, "file", 4), "the mapping holds %.4s", mapped);
	same("reading the removed one", 4, pread(gone, text, sizeof text, 0));
	say("outside/new");
	same("bytes of the event", 32, read(watcher, found.bytes, sizeof found));
	same("its watch", number, found.event.wd);
	return report();
}

/* FIFOs with something in them: opened for reading, writing, both; in /work and in a tmpfs; by two names; whose readers have gone; and after
   the freeze by name. */
#include "wait.h"
#include <poll.h>

static void check(const char *path) {
	char found[64] = "";
	must(mkfifo(path, 0600));
	int both = must(open(path, O_RDWR)), in = must(open(path, O_RDONLY | O_NONBLOCK)), out = must(open(path, O_WRONLY | O_CLOEXEC));
	must(write(out, "in the fifo", 11));
	int flags = fcntl(in, F_GETFL);
	close(both);
	char left[64], same_one[64];
	snprintf(left, sizeof left, "%s left", path), snprintf(same_one, sizeof same_one, "%s by another name", path);
	must(mkfifo(left, 0600));
	int gone = must(open(left, O_RDONLY | O_NONBLOCK)), alone = must(open(left, O_WRONLY));
	must(write(alone, "left behind", 11));
	close(gone);
	must(link(path, same_one));
	int by_other_name = must(open(same_one, O_RDONLY | O_NONBLOCK));
	if (path[1] == 't')
		freeze_here();
	else
		wait_for("check");
	spoil(must(read(in, found, 3)););
	same("flags", flags, fcntl(in, F_GETFL));
	same("close-on-exec", FD_CLOEXEC, fcntl(out, F_GETFD));
	same("reading", 11, read(in, found, 64));
	expect(!memcmp(found, "in the fifo", 11), "it held %.20s", found);
	expect(read(in, found, 64) == -1 && errno == EAGAIN, "it held more");
	expect(read(by_other_name, found, 64) == -1 && errno == EAGAIN, "it held it twice");
	expect(poll(&(struct pollfd){alone, POLLOUT, 0}, 1, 0) == 1, "the one that is left has no reader, and no error");
	gone = must(open(left, O_RDONLY | O_NONBLOCK));
	same("reading what was left behind", 11, read(gone, found, 64));
	expect(!memcmp(found, "left behind", 11), "that was %.20s", found);
	int again = must(open(path, O_WRONLY | O_NONBLOCK));
	must(write(again, "more", 4));
	same("reading what another writer wrote", 4, read(in, found, 64));
	close(again);
	close(out);
	same("reading without writers", 0, read(in, found, 64));
}

int main(void) {
	pid_t child = must(fork());
	if (child == 0) {
		check(strdup(in_work("fifo")));
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	check("/tmp/fifo");
	join(child);
	return report();
}

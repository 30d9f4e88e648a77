/* Watched directories and files, one renamed since, one removed, one that a watch was taken from, and what has no name; nothing happens to them by the freeze. */
#include "wait.h"
#include <sys/inotify.h>
#include <sys/socket.h>

/* A checkpoint reads what is in a tmpfs or deleted: that is seen. */
enum { ALL = IN_ALL_EVENTS & ~(IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE) };

static int next(int watcher, char into[4096]) {
	ssize_t got = read(watcher, into, 4096);
	return got < 0 ? (errno == EAGAIN ? 0 : -1) : (int)got;
}

static void happens(int watcher, int number, uint32_t mask, const char *name) {
	union { struct inotify_event event; char bytes[4096]; } found = {0};
	if (next(watcher, found.bytes) <= 0)
		differs("of watch %d, nothing comes", number);
	else {
		same("watch", number, found.event.wd);
		same("event", mask, found.event.mask);
		expect(!strcmp(found.event.len ? found.event.name : "", name), "watch %d: the name is %s", number, found.event.name);
	}
}

static int make(const char *name) { return must(open(name, O_RDWR | O_CREAT, 0644)); }

/* Watch what a descriptor names. */
static int watch(int watcher, int fd, uint32_t mask) {
	char link[32];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	return must(inotify_add_watch(watcher, link, mask));
}

int main(void) {
	char bytes[4096];
	int watcher = must(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)), other = must(inotify_init());
	must(mkdir(in_work("before"), 0755));
	must(mkdir("/tmp/directory", 0755));
	close(make(in_work("file")));
	int removed = make(in_work("removed"));
	int first = must(inotify_add_watch(watcher, in_work("before"), IN_CREATE | IN_DELETE));
	for (int i = 0; i < 5; i++)
		must(inotify_rm_watch(watcher, must(inotify_add_watch(watcher, in_work("file"), ALL))));
	int file = must(inotify_add_watch(watcher, in_work("file"), IN_MODIFY | IN_ONESHOT));
	int temporary = must(inotify_add_watch(watcher, "/tmp/directory", ALL));
	int gone = must(inotify_add_watch(watcher, in_work("removed"), ALL));
	int elsewhere = must(inotify_add_watch(other, "/proc/sys", IN_ACCESS));
	int ends[2], pair[2], memory = must(memfd_create("watched", 0));
	must(pipe(ends)), must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int nameless[] = {watch(watcher, memory, IN_MODIFY), watch(watcher, ends[0], IN_MODIFY), watch(watcher, pair[1], IN_ATTRIB)};
	must(rename(in_work("before"), in_work("after")));
	must(unlink(in_work("removed")));
	while (next(watcher, bytes))
		;
	int status = fcntl(watcher, F_GETFL);

	freeze_here();
	spoil(must(inotify_rm_watch(watcher, gone)););

	expect(next(watcher, bytes) == 0, "something happened by itself");
	same("status flags", status, fcntl(watcher, F_GETFL));
	same("close-on-exec", FD_CLOEXEC, fcntl(watcher, F_GETFD));
	close(make(in_work("after/new")));
	happens(watcher, first, IN_CREATE, "new");
	must(unlink(in_work("after/new")));
	happens(watcher, first, IN_DELETE, "new");
	int written = must(open(in_work("file"), O_WRONLY));
	must(write(written, "x", 1));
	must(write(written, "x", 1));
	union { struct inotify_event event; char bytes[4096]; } found = {0};
	same("events of the watch for one", 32, next(watcher, found.bytes)); /* and that it has gone */
	same("its number", file, found.event.wd);
	same("its event", IN_MODIFY, found.event.mask);
	must(chmod("/tmp/directory", 0700));
	happens(watcher, temporary, IN_ATTRIB | IN_ISDIR, "");
	must(write(removed, "x", 1));
	happens(watcher, gone, IN_MODIFY, "");
	close(removed);
	expect(next(watcher, bytes) == 48, "the removed one's end isn't told"); /* closed, deleted, gone */
	char link[32];
	snprintf(link, sizeof link, "/proc/self/fd/%d", memory);
	must(write(must(open(link, O_WRONLY)), "x", 1)); /* newer kernels tell nothing of what memfd_create(2) has opened */
	happens(watcher, nameless[0], IN_MODIFY, "");
	must(write(ends[1], "x", 1));
	happens(watcher, nameless[1], IN_MODIFY, "");
	same("removing the watch of a socket", 0, inotify_rm_watch(watcher, nameless[2]));
	happens(watcher, nameless[2], IN_IGNORED, "");
	same("removing a watch", 0, inotify_rm_watch(other, elsewhere));
	return report();
}

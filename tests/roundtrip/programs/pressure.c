/* Files of pressure (PSI), of the machine or a cgroup: which has a trigger that can be waited for. */
// arguments: proc | group
// capabilities: CAP_SYS_ADMIN
// needs: file /proc/pressure/cpu
#include "wait.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mount.h>

static int events(int fd) {
	struct pollfd one = {.fd = fd, .events = POLLPRI};
	must(poll(&one, 1, 0));
	return one.revents & ~POLLPRI; /* which may come at any time */
}

/* A second trigger is one too many, whatever it is. */
static int refusal(int fd) { return write(fd, "?", 1) == -1 ? errno : 0; }

int main(int count, char **arguments) {
	const char *directory = "/proc/pressure", *suffix = "";
	if (count > 1 && !strcmp(arguments[1], "group")) {
		directory = "/tmp", suffix = ".pressure";
		must(mount("cgroup2", directory, "cgroup2", 0, NULL));
	}
	char path[3][64];
	const char *names[] = {"cpu", "memory", "io"};
	for (int i = 0; i < 3; i++)
		snprintf(path[i], sizeof path[i], "%s/%s%s", directory, names[i], suffix);
	int waited = must(open(path[0], O_RDWR | O_NONBLOCK)), written = must(open(path[1], O_WRONLY));
	int none = must(open(path[2], O_RDWR)), read_only = must(open(path[0], O_RDONLY)), again = must(open(path[0], O_RDWR));
	must(write(waited, "some 500000 10000000", 21));
	must(write(written, "full 100000 2000000", 20));
	must(lseek(waited, 7, SEEK_SET));
	off_t behind = must(lseek(written, 0, SEEK_CUR));
	int epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, waited, &(struct epoll_event){.events = EPOLLPRI}));

	freeze_here();
	spoil(close(waited); waited = must(open(path[0], O_RDWR | O_NONBLOCK)););

	same("poll of the one that is waited for", 0, events(waited));
	same("poll of the one for writing", 0, events(written));
	same("poll of one without a trigger", POLLERR, events(none));
	same("another trigger there", EBUSY, refusal(waited));
	same("for writing", EBUSY, refusal(written));
	same("where there was none", EINVAL, refusal(none));
	same("where there was none, beside one", EINVAL, refusal(again));
	same("where it is only read", EBADF, refusal(read_only));
	same("position", 7, lseek(waited, 0, SEEK_CUR));
	same("position behind what was written", behind, lseek(written, 0, SEEK_CUR));
	struct epoll_event event = {0};
	must(epoll_wait(epoll, &event, 1, 0));
	same("epoll", 0, event.events & ~EPOLLPRI);
	return report();
}

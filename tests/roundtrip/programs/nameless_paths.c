/* Pipes, sockets and others without a path that are open by O_PATH: what these name, and that nothing can be done by them. */
#include "wait.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

enum { READER, WRITER, LEFT, RIGHT, LISTENER, NETLINK, EVENT, EPOLL, TIMER, SIGNALS, INOTIFY, COUNT };
static int files[COUNT], paths[COUNT];

static int opened(int file, int flags) {
	char link[32];
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	return must(open(link, flags));
}

static void check(int number) {
	struct stat file, path;
	must(fstat(files[number], &file));
	must(fstat(paths[number], &path));
	expect(file.st_ino == path.st_ino && file.st_dev == path.st_dev && file.st_mode == path.st_mode, "file %d: another one", number);
	same("flags", O_PATH, fcntl(paths[number], F_GETFL));
	same("close-on-exec", number % 2, fcntl(paths[number], F_GETFD));
	char link[32], one[64] = "", other[64] = "";
	snprintf(link, sizeof link, "/proc/self/fd/%d", files[number]);
	must(readlink(link, one, sizeof one - 1));
	snprintf(link, sizeof link, "/proc/self/fd/%d", paths[number]);
	must(readlink(link, other, sizeof other - 1));
	expect(!strcmp(one, other), "file %d: %s and %s", number, one, other);
	expect(read(paths[number], one, 1) == -1 && errno == EBADF, "file %d can be read", number);
}

int main(void) {
	char found[8] = "";
	struct sockaddr name = {.sa_family = AF_UNIX};
	must(pipe(files + READER));
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, files + LEFT));
	must(bind(files[LISTENER] = must(socket(AF_UNIX, SOCK_STREAM, 0)), &name, sizeof name.sa_family));
	must(listen(files[LISTENER], 3));
	files[NETLINK] = must(socket(AF_NETLINK, SOCK_RAW, 0));
	files[EVENT] = must(eventfd(3, 0));
	files[EPOLL] = must(epoll_create1(0));
	files[TIMER] = must(timerfd_create(CLOCK_MONOTONIC, 0));
	sigset_t none;
	sigemptyset(&none);
	files[SIGNALS] = must(signalfd(-1, &none, 0));
	files[INOTIFY] = must(inotify_init());
	for (int i = 0; i < COUNT; i++)
		paths[i] = opened(files[i], O_PATH | (i % 2 ? O_CLOEXEC : 0));
	must(write(files[WRITER], "kept", 4));
	freeze_here();
	for (int i = 0; i < COUNT; i++)
		check(i);
	/* What it names can be opened anew, if it is a pipe. */
	int again = opened(paths[READER], O_WRONLY);
	must(write(again, "more", 4));
	spoil(must(read(files[READER], found, 1));)
	expect(read(files[READER], found, 8) == 8 && !memcmp(found, "keptmore", 8), "the pipe has %.8s", found);
	return report();
}

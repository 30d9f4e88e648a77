/* Calls that wait for somebody: on pipes, FIFOs, sockets, counters. They end by what they waited for. */
#include "waits.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { WAITS_ = 4 };
static int pipes[WAITS_][2], counter, sockets[2], full[2], listener;
static struct sockaddr_un name = {AF_UNIX, "\0waits"};
static char byte, bytes[65536];

/* Each call that reads has a pipe of its own, in the order of the table. */
#define PIPE(number) pipes[number][0]
#define WAKE(number) static void wake##number(__attribute__((unused)) pid_t child) { must(write(pipes[number][1], "x", 1)); }
WAKE(0) WAKE(1) WAKE(2) WAKE(3)

static long read_(void) { return RAW(SYS_read, PIPE(0), &byte, 1); }
static long poll_(void) { return RAW(SYS_poll, &(struct pollfd){PIPE(1), POLLIN, 0}, 1, -1); }
static long select_(void) {
	fd_set set;
	FD_ZERO(&set);
	FD_SET(PIPE(2), &set);
	return RAW(SYS_select, PIPE(2) + 1, &set, NULL, NULL, NULL);
}
static long epoll(void) {
	int epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, PIPE(3), &(struct epoll_event){.events = EPOLLIN}));
	return RAW(SYS_epoll_wait, epoll, &(struct epoll_event){0}, 1, -1);
}
static long event(void) { return RAW(SYS_read, counter, &(uint64_t){0}, 8); }
static void wake_event(__attribute__((unused)) pid_t child) { must(eventfd_write(counter, 5)); }
static long receive(void) { return RAW(SYS_recvfrom, sockets[0], bytes, 9, MSG_WAITALL, NULL, NULL); }
static void wake_receive(__attribute__((unused)) pid_t child) { must(write(sockets[1], "nine more", 9)); }
static long write_(void) { return RAW(SYS_write, full[1], bytes, 100); }
static void wake_write(__attribute__((unused)) pid_t child) { must(read(full[0], bytes, 8192)); }
static long accept_(void) { return RAW(SYS_accept, listener, NULL, NULL) >= 0; }
static void wake_accept(__attribute__((unused)) pid_t child) { must(connect(must(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&name, 8)); }
static long fifo(void) { return RAW(SYS_openat, AT_FDCWD, in_work("waits-fifo"), O_RDONLY) >= 0; }
static void wake_fifo(__attribute__((unused)) pid_t child) { must(open(in_work("waits-fifo"), O_WRONLY)); }

static const struct wait waits[] = {
	{"read", read_, 1, wake0}, {"poll", poll_, 1, wake1}, {"select", select_, 1, wake2}, {"epoll_wait", epoll, 1, wake3},
	{"read-eventfd", event, 8, wake_event}, {"recv", receive, 9, wake_receive}, {"write", write_, 100, wake_write},
	{"accept", accept_, 1, wake_accept}, {"open-fifo", fifo, 1, wake_fifo},
};

int main(int count, char **arguments) {
	for (int i = 0; i < WAITS_; i++)
		must(pipe(pipes[i]));
	must(pipe(full));
	must(write(full[1], bytes, must(fcntl(full[1], F_GETPIPE_SZ)))); /* less than 64 KiB, if its user has many */
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	counter = must(eventfd(0, 0));
	listener = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(listener, (void *)&name, 8));
	must(listen(listener, 1));
	must(mkfifo(in_work("waits-fifo"), 0600));
	return all_of(WAITS(waits), 0);
}

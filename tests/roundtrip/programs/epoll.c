/* epoll: what is watched, for what, with which data; nested; what was told already; files that were closed under their first number, or altogether, but for a child. */
#include "wait.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static void add(int epoll, int file, uint32_t events, uint64_t data) {
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, file, &(struct epoll_event){.events = events, .data.u64 = data}));
}

static uint64_t next(int epoll) {
	struct epoll_event event = {0};
	return epoll_wait(epoll, &event, 1, 0) == 1 ? event.data.u64 : 0;
}

int main(void) {
	int outer = must(epoll_create1(EPOLL_CLOEXEC)), inner = must(epoll_create1(0)), counter[6], pipes[2], pair[2], told[2], lent[2];
	int lone = must(epoll_create1(0));
	for (int i = 0; i < 6; i++)
		counter[i] = must(eventfd(0, EFD_NONBLOCK));
	must(pipe(pipes));
	add(inner, counter[0], EPOLLIN, 0x1234567890abcdef);
	add(outer, inner, EPOLLIN, 2);
	add(outer, counter[1], EPOLLIN | EPOLLET, 3);
	add(outer, counter[2], EPOLLIN | EPOLLONESHOT, 4);
	add(outer, counter[3], EPOLLIN, 5);
	add(outer, pipes[0], EPOLLIN | EPOLLRDHUP, 6);
	must(eventfd_write(counter[2], 1));
	same("the one-shot's only event", 4, next(outer)); /* disarmed now */
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	add(outer, pair[0], EPOLLIN | EPOLLONESHOT, 8);
	must(write(pair[1], "x", 1));
	same("another one-shot's only event", 8, next(outer));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, told));
	add(outer, told[0], EPOLLIN | EPOLLET, 9);
	must(write(told[1], "x", 1));
	same("the edge", 9, next(outer)); /* told, and still ready */
	must(pipe(lent));
	add(lone, lent[0], EPOLLIN, 10);
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("done");
		_exit(0);
	}
	close(lent[0]);
	int moved = must(dup(counter[3]));
	close(counter[3]); /* still watched: its description is open as `moved` */

	int reused = must(epoll_create1(0)), first[2], second[2];
	must(pipe(first) | pipe(second));
	int was_first = must(dup(first[0]));
	must(epoll_ctl(reused, EPOLL_CTL_ADD, first[0], &(struct epoll_event){.events = EPOLLIN, .data.u64 = 21}));
	must(dup2(second[0], first[0])); /* still watched, under a number that is another file's */
	must(epoll_ctl(reused, EPOLL_CTL_ADD, first[0], &(struct epoll_event){.events = EPOLLIN, .data.u64 = 22}));

	/* How long it looks for packets itself; a struct epoll_params, since Linux 6.9. */
	struct { uint32_t microseconds; uint16_t budget; uint8_t prefers, unused; } polls = {50, 8, 1, 0}, polled = {0};
	int knows_how = ioctl(inner, _IOW(0x8A, 1, polls), &polls);

	freeze_here();
	spoil(must(epoll_ctl(outer, EPOLL_CTL_DEL, counter[1], NULL)););

	same("looking for packets", knows_how, ioctl(inner, _IOR(0x8A, 2, polled), &polled));
	expect(knows_how != 0 || !memcmp(&polls, &polled, sizeof polls), "for how long: %u, %u, %u", polled.microseconds, polled.budget, polled.prefers);
	same("close-on-exec", FD_CLOEXEC, fcntl(outer, F_GETFD));
	same("an event without a cause", 0, next(outer));
	must(write(first[1], "x", 1));
	same("the first under a number", 21, next(reused));
	must(read(was_first, &(char){0}, 1) | write(second[1], "x", 1));
	same("the second under it", 22, next(reused));
	close(pair[1]);
	same("the end of what is watched no more", 0, next(outer));
	must(write(told[1], "y", 1));
	same("another edge", 9, next(outer));
	same("an event of what the child has", 0, next(lone));
	must(write(lent[1], "x", 1));
	same("what the child has", 10, next(lone));
	say("done");
	join(child);
	must(eventfd_write(counter[2], 1));
	same("the one-shot's event", 0, next(outer));
	must(epoll_ctl(outer, EPOLL_CTL_MOD, counter[2], &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 7}));
	same("the one-shot armed again", 7, next(outer));
	must(eventfd_write(counter[1], 1));
	same("edge", 3, next(outer));
	same("edge, told once", 0, next(outer));
	must(eventfd_write(moved, 1));
	same("the moved one", 5, next(outer));
	must(eventfd_read(moved, &(eventfd_t){0}));
	must(write(pipes[1], "x", 1));
	same("the pipe", 6, next(outer));
	close(pipes[0]);
	must(eventfd_write(counter[0], 1));
	same("the nested one", 2, next(outer));
	same("inside", 0x1234567890abcdef, next(inner));
	expect(epoll_ctl(outer, EPOLL_CTL_ADD, counter[1], &(struct epoll_event){0}) == -1 && errno == EEXIST, "it isn't watched");
	return report();
}

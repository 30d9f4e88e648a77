/* Files that are only in flight: a listening socket with one that waits there, a timer that runs, an epoll and one of the files that it watches. */
#include "unix_names.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

enum { COUNT = 4 };
const char *const names[] = {"@in flight"};

int main(void) {
	union { char bytes[CMSG_SPACE(COUNT * sizeof(int))]; struct cmsghdr head; } control = {0};
	char byte = 'x', found[8];
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int pair[2], held = must(eventfd(0, EFD_NONBLOCK)), client = must(socket(AF_UNIX, SOCK_STREAM, 0)), files[COUNT];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(listen(files[0] = named(SOCK_STREAM, 0), 3));
	tie(client, 0);
	files[1] = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	must(timerfd_settime(files[1], 0, &(struct itimerspec){.it_value = {.tv_sec = 1000}}, NULL));
	files[2] = must(epoll_create1(0));
	files[3] = must(eventfd(0, EFD_NONBLOCK));
	must(epoll_ctl(files[2], EPOLL_CTL_ADD, held, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 1}));
	must(epoll_ctl(files[2], EPOLL_CTL_ADD, files[3], &(struct epoll_event){.events = EPOLLIN, .data.u64 = 2}));
	control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof files), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.head), files, sizeof files);
	must(sendmsg(pair[0], &message, 0));
	for (int i = 0; i < COUNT; i++)
		close(files[i]);

	freeze_here();
	spoil(must(close(held)););

	same("the message", 1, recvmsg(pair[1], &message, 0));
	memcpy(files, CMSG_DATA(&control.head), sizeof files);
	int server = accept4(files[0], NULL, NULL, SOCK_NONBLOCK);
	expect(send(client, "hello", 5, MSG_NOSIGNAL) == 5 && recv(server, found, 8, 0) == 5, "the client isn't heard");
	struct itimerspec left = {0};
	must(timerfd_gettime(files[1], &left));
	expect(left.it_value.tv_sec > 900 && left.it_value.tv_sec < 1000, "the timer has %ld s left", left.it_value.tv_sec);
	struct epoll_event event = {0};
	same("the epoll", 0, epoll_wait(files[2], &event, 1, 0));
	expect(eventfd_write(held, 1) == 0, "the held one is closed");
	expect(epoll_wait(files[2], &event, 1, 0) == 1 && event.data.u64 == 1, "the held one isn't watched");
	eventfd_read(held, &(eventfd_t){0});
	must(eventfd_write(files[3], 1));
	expect(epoll_wait(files[2], &event, 1, 0) == 1 && event.data.u64 == 2, "the other one isn't watched");
	return report();
}

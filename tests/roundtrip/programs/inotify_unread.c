/* Events that nobody has read: they are there, or the queue has run over, so that the program looks anew. */
#include "wait.h"
#include <sys/epoll.h>
#include <sys/inotify.h>

int main(void) {
	union { struct inotify_event event; char bytes[4096]; } found = {0};
	int watcher = must(inotify_init1(IN_NONBLOCK)), epoll = must(epoll_create1(0));
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, watcher, &event));
	must(mkdir(in_work("watched"), 0755));
	int number = must(inotify_add_watch(watcher, in_work("watched"), IN_CREATE));
	say("watched/one");

	freeze_here();
	spoil(must(read(watcher, found.bytes, sizeof found)););

	same("epoll", 1, epoll_wait(epoll, &event, 1, 0));
	ssize_t got = read(watcher, found.bytes, sizeof found);
	bool there = got == 32 && found.event.wd == number && !strcmp(found.event.name, "one");
	bool overflow = got == 16 && found.event.wd == -1 && found.event.mask == IN_Q_OVERFLOW;
	expect(there || overflow, "of %zd bytes, the first event is %#x of watch %d", got, found.event.mask, found.event.wd);
	say("watched/two");
	same("reading what happens next", 32, read(watcher, found.bytes, sizeof found));
	expect(found.event.wd == number && !strcmp(found.event.name, "two"), "it is of watch %d", found.event.wd);
	return report();
}

/* Urgent data (MSG_OOB) that TCP connections have received: unread, read by those who ask for it, in line, and among much else; and at some
 * that nobody has accepted. */
// arguments: accepted | waiting
#include "wait.h"
#include <arpa/inet.h>
#include <poll.h>
#include <sys/ioctl.h>

enum { PAIRS = 8, MUCH = 200000 };
static const struct pair { int before, after; bool read, inlined, finished; } pairs[PAIRS] = {
	{.before = 2, .after = 2},
	{.before = 2, .after = 2, .read = true},
	{.after = 3},
	{.before = 3},
	{.before = 2, .after = 2, .inlined = true},
	{.before = MUCH, .after = MUCH},
	{.before = 2, .after = 2, .finished = true},
	{.read = true, .after = 2, .finished = true},
};
static char much[MUCH], found[MUCH + 8];

static void write_all(int fd, int length) {
	for (int done = 0; done < length;)
		done += must(send(fd, much + done, length - done, 0));
}

/* Read up to a length, or the mark, or the end. */
static int read_some(int fd, int length) {
	int done = 0, got;
	while (done < length && (got = recv(fd, found + done, length - done, MSG_DONTWAIT)) > 0) {
		done += got;
		if (sockatmark(fd) == 1)
			break;
	}
	return done;
}

int main(int count, char **arguments) {
	bool waits = count > 1 && !strcmp(arguments[1], "waiting");
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(6430), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), clients[PAIRS], servers[PAIRS];
	must(bind(listener, (void *)&name, sizeof name));
	must(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &(int){4 * MUCH}, sizeof(int)));
	must(listen(listener, PAIRS));
	for (int i = 0; i < MUCH; i++)
		much[i] = i % 251;
	for (int i = 0; i < PAIRS; i++) {
		clients[i] = must(socket(AF_INET, SOCK_STREAM, 0));
		must(connect(clients[i], (void *)&name, sizeof name));
		if (waits) {
			servers[i] = -1;
			if (pairs[i].read || pairs[i].inlined)
				continue;
			write_all(clients[i], pairs[i].before);
			must(send(clients[i], "!", 1, MSG_OOB));
			write_all(clients[i], pairs[i].after);
			for (int left = 1; left;)
				must(ioctl(clients[i], TIOCOUTQ, &left));
			if (pairs[i].finished)
				must(shutdown(clients[i], SHUT_WR));
			continue;
		}
		servers[i] = must(accept(listener, NULL, NULL));
		if (pairs[i].inlined)
			must(setsockopt(servers[i], SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)));
		write_all(clients[i], pairs[i].before);
		must(send(clients[i], "!", 1, MSG_OOB));
		must(poll(&(struct pollfd){.fd = servers[i], .events = POLLPRI}, 1, 10000));
		write_all(clients[i], pairs[i].after);
		if (pairs[i].read)
			must(recv(servers[i], found, 1, MSG_OOB));
		if (pairs[i].finished)
			must(shutdown(clients[i], SHUT_WR));
		/* all of it is there */
		for (int waiting = 0, inlined = 1; waiting < pairs[i].before + 1 + pairs[i].after;) {
			must(setsockopt(servers[i], SOL_SOCKET, SO_OOBINLINE, &inlined, sizeof inlined));
			must(ioctl(servers[i], FIONREAD, &waiting));
			must(setsockopt(servers[i], SOL_SOCKET, SO_OOBINLINE, &(int){pairs[i].inlined}, sizeof(int)));
		}
		while (pairs[i].finished && !(poll(&(struct pollfd){.fd = servers[i], .events = POLLRDHUP}, 1, 10000) == 1));
	}

	freeze_here();
	spoil(must(send(clients[0], "x", 1, 0)););

	for (int i = 0; i < PAIRS; i++) {
		const struct pair *one = &pairs[i];
		if (waits)
			servers[i] = must(accept(listener, NULL, NULL));
		if (waits && (one->read || one->inlined))
			continue;
		char byte = 0, what[32];
		snprintf(what, sizeof what, "connection %d", i);
		struct pollfd event = {.fd = servers[i], .events = POLLPRI};
		must(poll(&event, 1, 0));
		same(what, one->read ? 0 : POLLPRI, event.revents & POLLPRI);
		if (one->before) {
			same(what, 0, sockatmark(servers[i]));
			same(what, one->before, read_some(servers[i], one->before + 1 + one->after));
			same(what, 0, memcmp(found, much, one->before));
		}
		same(what, 1, sockatmark(servers[i]));
		int got = recv(servers[i], &byte, 1, MSG_OOB | MSG_DONTWAIT);
		same(what, one->read || one->inlined ? -1 : 1, got);
		if (got == 1)
			same(what, '!', byte);
		same(what, one->after + one->inlined, read_some(servers[i], one->after + 1));
		same(what, 0, memcmp(found + one->inlined, much, one->after));
		if (one->inlined)
			same(what, '!', found[0]);
		same(what, one->finished ? 0 : -1, recv(servers[i], found, 1, MSG_DONTWAIT));
		if (one->finished)
			continue;
		must(send(clients[i], "news", 4, 0));
		must(send(clients[i], "?", 1, MSG_OOB));
		event.events = POLLPRI;
		same(what, 1, poll(&event, 1, 10000));
		same(what, 4, read_some(servers[i], 8));
		same(what, 4, send(servers[i], "back", 4, 0));
		same(what, 4, recv(clients[i], found, 4, MSG_WAITALL));
	}
	return report();
}

/* TCP sockets at their ends: connected to themselves, refused, reset, and half closed. */
#include "wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>

static struct sockaddr_in at(int port) {
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int bound(int port) {
	struct sockaddr_in name = at(port);
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(fd, (void *)&name, sizeof name));
	return fd;
}

static int error_of(int fd) {
	int value = -1;
	must(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &(socklen_t){sizeof value}));
	return value;
}

static int state_of(int fd) {
	struct tcp_info info;
	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &(socklen_t){sizeof info}));
	return info.tcpi_state;
}

/* Connected to itself, by a simultaneous open: with what is sent, and after SHUT_WR. */
static int alone(int port, int data, int shut) {
	struct sockaddr_in name = at(port);
	int fd = bound(port);
	must(connect(fd, (void *)&name, sizeof name));
	if (data)
		must(send(fd, "to myself", 9, 0));
	if (shut)
		must(shutdown(fd, SHUT_WR));
	return fd;
}

/* Refused; whose program knows, if it has asked. */
static int refused(int family, bool asked) {
	struct sockaddr_in name = at(6410);
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(6410), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	int fd = must(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	int got = family == AF_INET ? connect(fd, (void *)&name, sizeof name) : connect(fd, (void *)&six, sizeof six);
	same("connecting", -1, got);
	same("how", EINPROGRESS, errno);
	must(poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 10000));
	if (asked)
		same("the error", ECONNREFUSED, error_of(fd));
	return fd;
}

/* Reset by its peer, which had sent something before. */
static int reset_after(int listener, const char *data, size_t length) {
	struct sockaddr_in name = at(6420);
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(fd, (void *)&name, sizeof name));
	int peer = must(accept(listener, NULL, NULL));
	must(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &(int){length}, sizeof(int)));
	must(send(peer, data, length, 0));
	must(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000));
	must(setsockopt(peer, SOL_SOCKET, SO_LINGER, (int[]){1, 0}, 2 * sizeof(int)));
	close(peer);
	must(poll(&(struct pollfd){.fd = fd, .events = POLLRDHUP}, 1, 10000));
	return fd;
}

static int events_of(int fd) {
	struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
	must(poll(&one, 1, 0));
	return one.revents;
}

int main(void) {
	int selves[4], denied[4], events[4], listener = bound(6420);
	for (int i = 0; i < 4; i++) {
		selves[i] = alone(6400 + i, i & 1, i & 2);
		same("the state of one that talks to itself", i & 2 ? TCP_CLOSE : TCP_ESTABLISHED, state_of(selves[i]));
		denied[i] = refused(i & 2 ? AF_INET6 : AF_INET, i & 1);
		events[i] = events_of(denied[i]);
	}
	must(listen(listener, 5));
	static char much[300000], got[sizeof much];
	fill(much, sizeof much, 1);
	int resets[] = {reset_after(listener, "unread", 6), reset_after(listener, much, sizeof much)};

	freeze_here();
	spoil(error_of(denied[0]););

	for (int i = 0; i < 4; i++) {
		char data[16] = {0};
		same("its state", i & 2 ? TCP_CLOSE : TCP_ESTABLISHED, state_of(selves[i]));
		if (i & 1)
			expect(recv(selves[i], data, sizeof data, MSG_DONTWAIT) == 9 && !strcmp(data, "to myself"), "it has not got what it sent, but %s", data);
		if (i & 2) {
			same("its end", 0, recv(selves[i], data, sizeof data, MSG_DONTWAIT));
			continue;
		}
		same("sending to itself", 4, send(selves[i], "more", 4, MSG_NOSIGNAL));
		must(poll(&(struct pollfd){.fd = selves[i], .events = POLLIN}, 1, 10000));
		same("getting that", 4, recv(selves[i], data, sizeof data, MSG_DONTWAIT));
	}
	expect(recv(resets[0], got, sizeof got, MSG_DONTWAIT) == 6 && !memcmp(got, "unread", 6), "what came before a reset is lost");
	expect(recv(resets[1], got, sizeof got, MSG_DONTWAIT) == sizeof got && is_filled(got, sizeof got, 1), "much of what came before a reset is lost");
	for (int i = 0; i < 2; i++)
		expect(recv(resets[i], got, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "it isn't told of the reset");
	for (int i = 0; i < 4; i++) {
		same("events of who was refused", events[i], events_of(denied[i]));
		same("its error", i & 1 ? 0 : ECONNREFUSED, error_of(denied[i]));
		same("its state", TCP_CLOSE, state_of(denied[i]));
		if (i & 2)
			continue;
		/* The next try says that the last one has ended; the one after that is a new one. */
		struct sockaddr_in name = at(6420);
		same("trying again", -1, connect(denied[i], (void *)&name, sizeof name));
		same("how", ECONNABORTED, errno);
		must(fcntl(denied[i], F_SETFL, 0));
		same("trying once more", 0, connect(denied[i], (void *)&name, sizeof name));
	}
	return report();
}

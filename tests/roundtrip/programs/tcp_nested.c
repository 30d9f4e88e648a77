/* Connections into a network namespace of a program's own, within it, and from one to another, in several states. */
// capabilities: CAP_SYS_ADMIN CAP_NET_ADMIN
#include "network.h"
#include <netinet/in.h>
#include <netinet/tcp.h>

enum { OWN, FIRST, SECOND };
static int networks[3];
static const char *const addresses[] = {"10.0.9.1", "10.0.9.2", "10.0.8.2"};

static void go(int where) { close_routing(), must(setns(networks[where], CLONE_NEWNET)); }

static int new_network(void) {
	must(unshare(CLONE_NEWNET)), close_routing(), up("lo");
	int made = must(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
	go(OWN);
	return made;
}

static void pair_to(const char *name, const char *own, const char *peer, const char *other, int where) {
	new_link(name, "veth", 0);
	struct nlattr *at = nest(VETH_INFO_PEER);
	struct ifinfomsg head = {0};
	memcpy((char *)&request + request.head.nlmsg_len, &head, sizeof head);
	request.head.nlmsg_len += sizeof head;
	put_text(IFLA_IFNAME, peer), put32(IFLA_NET_NS_FD, networks[where]);
	end(at), made();
	up(name), address(name, own, 24), ask();
	go(where), up(peer), address(peer, other, 24), ask(), settle(); /* and stay there */
}

struct ends { int client, server; };

/* A listener in one namespace, and a client in another. */
static struct ends connected(int from, int to, const char *host, int port) {
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, host, &name.sin_addr);
	int one = 1;
	go(to);
	int listener = must(socket(AF_INET, SOCK_STREAM, 0));
	must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
	must(bind(listener, (void *)&name, sizeof name)), must(listen(listener, 4));
	go(from);
	struct ends ends = {.client = must(socket(AF_INET, SOCK_STREAM, 0))};
	must(connect(ends.client, (void *)&name, sizeof name));
	ends.server = must(accept(listener, NULL, NULL));
	close(listener);
	go(OWN);
	return ends;
}

static void reads(const char *what, int fd, const char *wanted) {
	char found[64] = "";
	struct timeval soon = {.tv_sec = 10};
	must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
	ssize_t length = recv(fd, found, strlen(wanted), MSG_WAITALL);
	expect(length == (ssize_t)strlen(wanted) && !strcmp(found, wanted), "%s: \"%s\" instead of \"%s\" (%s)", what, found, wanted, length < 0 ? strerror(errno) : "");
}

static void converse(const char *what, struct ends ends) {
	must(send(ends.client, "there", 5, MSG_NOSIGNAL)), reads(what, ends.server, "there");
	must(send(ends.server, "and back", 8, MSG_NOSIGNAL)), reads(what, ends.client, "and back");
}

int main(void) {
	networks[OWN] = must(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
	networks[FIRST] = new_network(), networks[SECOND] = new_network();
	pair_to("out", addresses[OWN], "in", addresses[FIRST], FIRST);
	pair_to("across", "10.0.8.1", "in", addresses[SECOND], SECOND);
	go(OWN);
	struct ends into = connected(OWN, FIRST, addresses[FIRST], 7001), out = connected(FIRST, OWN, addresses[OWN], 7002),
		within = connected(FIRST, FIRST, "127.0.0.1", 7003), twice = connected(SECOND, SECOND, "127.0.0.1", 7003),
		between = connected(FIRST, SECOND, addresses[SECOND], 7004), half = connected(OWN, FIRST, addresses[FIRST], 7005),
		queued = connected(FIRST, SECOND, addresses[SECOND], 7006);
	must(shutdown(half.client, SHUT_WR));
	must(send(queued.client, "to the server", 13, 0)), must(send(queued.server, "to the client", 13, 0));
	must(send(within.client, "first", 5, 0)), must(send(twice.client, "second", 6, 0));
	go(SECOND);
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7009)};
	int listener = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(listener, (void *)&name, sizeof name)), must(listen(listener, 4));
	go(OWN);
	usleep(100000);
	freeze_here();
	spoil(must(shutdown(between.server, SHUT_WR)););
	reads("within the first", within.server, "first"), reads("within the second", twice.server, "second");
	reads("queued for the server", queued.server, "to the server"), reads("queued for the client", queued.client, "to the client");
	converse("into the first", into), converse("out of the first", out), converse("within the first", within);
	converse("within the second", twice), converse("queued", queued);
	must(send(between.client, "there", 5, MSG_NOSIGNAL)), reads("between", between.server, "there");
	send(between.server, "and back", 8, MSG_NOSIGNAL), reads("between", between.client, "and back");
	char byte;
	expect(recv(half.server, &byte, 1, 0) == 0, "the half-closed one didn't end");
	must(send(half.server, "still", 5, MSG_NOSIGNAL)), reads("half-closed", half.client, "still");
	go(FIRST);
	int caller = must(socket(AF_INET, SOCK_STREAM, 0));
	inet_pton(AF_INET, addresses[SECOND], &name.sin_addr);
	must(connect(caller, (void *)&name, sizeof name));
	struct ends late = {.client = caller, .server = must(accept(listener, NULL, NULL))};
	converse("a new one", late);
	return report();
}

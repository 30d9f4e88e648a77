/* Sockets in network namespaces that programs made: each stays in its own, also those that are held elsewhere. */
// capabilities: CAP_SYS_ADMIN CAP_NET_ADMIN
#include "namespaces.h"
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PORT 4077

struct sockets { int listening, client, served, pair[2], udp, tcp, netlink, named, peer; uint64_t cookie; };

static uint64_t cookie_of(int one) {
	uint64_t cookie = 0;
	must(getsockopt(one, SOL_SOCKET, 71 /* SO_NETNS_COOKIE */, &cookie, &(socklen_t){sizeof cookie}));
	return cookie;
}

static struct sockaddr_un address_of(const char *name, bool abstract) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path + abstract, sizeof address.sun_path - 1, "%s", name);
	return address;
}

static struct sockets make(const char *path) {
	struct sockets made;
	struct sockaddr_un abstract = address_of("pond", true), named = address_of(path, false);
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	made.listening = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(made.listening, (void *)&abstract, sizeof abstract)), must(listen(made.listening, 4));
	made.client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(made.client, (void *)&abstract, sizeof abstract));
	made.served = must(accept(made.listening, NULL, NULL));
	must(write(made.client, "on its way", 10));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, made.pair));
	made.udp = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(made.udp, (void *)&any, sizeof any));
	made.tcp = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(made.tcp, (void *)&any, sizeof any)), must(listen(made.tcp, 3));
	made.netlink = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	made.named = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(bind(made.named, (void *)&named, sizeof named));
	made.peer = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(connect(made.peer, (void *)&named, sizeof named));
	made.cookie = cookie_of(made.udp);
	return made;
}

static void verify(const char *who, struct sockets *made, bool here) {
	int all[] = {made->listening, made->client, made->served, made->pair[0], made->udp, made->tcp, made->netlink, made->named, made->peer};
	uint64_t cookie = cookie_of(made->udp);
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		expect(cookie_of(all[i]) == cookie, "%s: socket %d is in another network", who, i);
	int one = must(socket(AF_INET, SOCK_DGRAM, 0));
	expect((cookie_of(one) == cookie) == here, "%s: the sockets are %s", who, here ? "elsewhere" : "here");
	char text[20] = "";
	expect(read(made->served, text, 20) == 10 && !strcmp(text, "on its way"), "%s: read %s", who, text);
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	expect(bind(one, (void *)&any, sizeof any) == (here ? -1 : 0), "%s: the port is %s", who, here ? "free" : "taken");
	must(write(made->peer, "letter", 6));
	expect(read(made->named, text, 20) == 6, "%s: no letter", who);
	struct sockaddr_un abstract = address_of("pond", true);
	int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	expect(connect(client, (void *)&abstract, sizeof abstract) == (here ? 0 : -1), "%s: abstract names are others", who);
}

int main(void) {
	struct sockets own = make("/tmp/own");
	pid_t child = must(fork());
	if (child == 0) {
		must(unshare(CLONE_NEWNET));
		struct sockets theirs = make("/tmp/theirs");
		spoil(must(close(theirs.netlink)), theirs.netlink = own.netlink;);
		say("made");
		wait_for("check");
		verify("inside", &theirs, true);
		return 0;
	}
	wait_for("made");
	pid_t holder = must(fork());
	if (holder == 0) { /* is where it was, with sockets of elsewhere; those of its parent it lets go */
		for (int *fd = (int *)&own; fd < &own.peer + 1; fd++)
			close(*fd);
		int home = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
		must(unshare(CLONE_NEWNET));
		pid_t keeper = must(fork());
		if (keeper == 0) {
			say("kept"), wait_for("check");
			return 0;
		}
		struct sockets theirs = make("/tmp/held");
		must(setns(home, CLONE_NEWNET)), close(home);
		say("held");
		wait_for("verified");
		verify("from outside", &theirs, false);
		join(keeper);
		return 0;
	}
	wait_for("held"), wait_for("kept");
	freeze_here();
	verify("own", &own, true);
	join(child);
	for (int *fd = (int *)&own; fd < &own.peer + 1; fd++)
		close(*fd);
	say("verified");
	join(holder);
	return report();
}

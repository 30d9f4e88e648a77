/* Names of connected unix sockets: accepted ends and bound clients, whether or not the listener is still there. */
#include "unix_names.h"

enum { BY_PATH, ABSTRACT, CLOSED, CLOSED_ABSTRACT, UNLINKED, PACKETS, CLIENT, ABSTRACT_CLIENT };
const char *const names[] = {"/tmp/link/path", "@abstract", "/work/closed", "@closed", "/tmp/unlinked", "@packets", "/work/client", "@client"};

int main(void) {
	int servers[12], clients[12], listeners[6], mine[12];
	char found[32];
	/* Outside of the container this link leads elsewhere. */
	must(mkdir("/tmp/directory", 0700) | symlink("/tmp/directory", "/tmp/link"));
	for (int i = 0; i < 6; i++)
		must(listen(listeners[i] = named(i == PACKETS ? SOCK_SEQPACKET : SOCK_STREAM, i), 5));
	for (int i = 0; i < 12; i++) {
		mine[i] = i == BY_PATH ? CLIENT : i == CLOSED_ABSTRACT ? ABSTRACT_CLIENT : -1;
		int type = i % 6 == PACKETS ? SOCK_SEQPACKET : SOCK_STREAM;
		tie(clients[i] = mine[i] < 0 ? must(socket(AF_UNIX, type, 0)) : named(type, mine[i]), i % 6);
		servers[i] = must(accept(listeners[i % 6], NULL, NULL));
		must(send(clients[i], "to the server", 13, 0));
		must(send(servers[i], "to the client", 13, 0));
	}
	must(recv(clients[11], found, 13, 0));
	/* A path that leaves no room for a zero byte at its end. */
	struct sockaddr_un longest = {.sun_family = AF_UNIX}, told = {0};
	memset(longest.sun_path, 'x', sizeof longest.sun_path);
	memcpy(longest.sun_path, "/work/", 6);
	int full = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(bind(full, (struct sockaddr *)&longest, sizeof longest));
	must(close(listeners[CLOSED]) | close(listeners[CLOSED_ABSTRACT]) | close(clients[11]) | unlink(names[UNLINKED]) | chmod(names[CLOSED], 0705));

	freeze_here();
	spoil(must(dup2(servers[0], clients[3])););

	for (int i = 0; i < 12; i++) {
		is_named("a server", servers[i], i % 6, false);
		is_named("a client", clients[i == 11 ? 5 : i], mine[i], false);
		is_named("a client's peer", clients[i == 11 ? 5 : i], i % 6, true);
		is_named("a server's peer", servers[i], mine[i], true);
		for (int client = 0; client < 2 - (i == 11); client++) {
			expect(recv(client ? clients[i] : servers[i], found, 13, MSG_DONTWAIT) == 13 && !memcmp(found, client ? "to the client" : "to the server", 13), "%d has got something else", i);
			expect(i == 11 || send(client ? clients[i] : servers[i], "more", 4, MSG_NOSIGNAL) == 4, "%d sends nothing", i);
		}
	}
	must(getsockname(full, (struct sockaddr *)&told, &(socklen_t){sizeof told}));
	expect(!memcmp(told.sun_path, longest.sun_path, sizeof told.sun_path), "the longest name is another one");
	expect(connect(full, (struct sockaddr *)&longest, sizeof longest) == 0, "nobody is found by the longest name: %s", strerror(errno));
	struct stat path = {0};
	expect(stat(names[CLOSED], &path) == 0 && (path.st_mode & 0777) == 0705, "the closed listener's path has mode %o", path.st_mode);
	expect(stat(names[BY_PATH], &path) == 0, "the path behind a link has gone");
	expect(stat(names[UNLINKED], &path) == -1, "the unlinked path is back");
	return report();
}

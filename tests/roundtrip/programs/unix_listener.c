/* Listening unix sockets, by path and by abstract name, and a datagram socket with a name: clients find them afterwards. */
#include "wait.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un names[4] = {{AF_UNIX, "/work/listener"}, {AF_UNIX, "\0abstract\0name"}, {AF_UNIX, "/tmp/listener"}, {AF_UNIX, "/work/box"}};
static const socklen_t sizes[4] = {sizeof names[0], offsetof(struct sockaddr_un, sun_path) + 14, sizeof names[0], sizeof names[0]};

int main(void) {
	int sockets[4], boxed;
	char found[32] = "";
	for (int i = 0; i < 4; i++) {
		sockets[i] = must(socket(AF_UNIX, (i == 3 ? SOCK_DGRAM : i == 2 ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_NONBLOCK, 0));
		must(bind(sockets[i], (struct sockaddr *)&names[i], sizes[i]));
		if (i < 3)
			must(listen(sockets[i], 5));
	}
	must(chmod("/work/listener", 0707));
	boxed = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(sendto(boxed, "a letter", 8, 0, (struct sockaddr *)&names[3], sizes[3]));

	freeze_here();
	spoil(unlink("/work/listener"););

	for (int i = 0; i < 3; i++) {
		struct sockaddr_un name = {0};
		socklen_t size = sizeof name;
		must(getsockname(sockets[i], (struct sockaddr *)&name, &size));
		expect(!memcmp(&name, &names[i], sizes[i] < 40 ? sizes[i] : 40), "name %d is another", i);
		expect(accept(sockets[i], NULL, NULL) == -1 && errno == EAGAIN, "a client without one: %d", i);
		int client = must(socket(AF_UNIX, i == 2 ? SOCK_SEQPACKET : SOCK_STREAM, 0));
		if (connect(client, (struct sockaddr *)&names[i], sizes[i]) != 0) {
			differs("connecting to %d: %s", i, strerror(errno));
			continue;
		}
		int server = must(accept(sockets[i], NULL, NULL));
		must(send(client, "hello", 5, 0));
		same("hello", 5, recv(server, found, 32, 0));
		struct ucred peer;
		size = sizeof peer;
		must(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size));
		same("the listener's pid", getpid(), peer.pid);
	}
	struct stat stat_;
	expect(stat("/work/listener", &stat_) == 0 && (stat_.st_mode & 0777) == 0707, "the socket file has another mode");
	same("the letter", 8, recv(sockets[3], found, 32, 0));
	expect(!memcmp(found, "a letter", 8), "it says %.8s", found);
	must(sendto(boxed, "another", 7, 0, (struct sockaddr *)&names[3], sizes[3]));
	same("another letter", 7, recv(sockets[3], found, 32, 0));
	return report();
}

/* Sockets at places that the next container may lack: addresses, a network device, a directory. All must still be there, and answer. */
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PORT = 7079 };

static int bound(int family, int type, const char *address, int port, const char *device) {
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	inet_pton(family, address, family == AF_INET ? (void *)&four.sin_addr : &six.sin6_addr);
	int fd = must(socket(family, type | SOCK_NONBLOCK, 0));
	if (device)
		must(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)));
	must(family == AF_INET ? bind(fd, (void *)&four, sizeof four) : bind(fd, (void *)&six, sizeof six));
	if (type == SOCK_STREAM)
		must(listen(fd, 5));
	return fd;
}

int main(int count, char **arguments) {
	if (count < 4)
		return 1;
	const char *four = arguments[1], *six = arguments[2], *device = arguments[3];
	int fds[8], used = 0;
	fds[used++] = bound(AF_INET, SOCK_STREAM, four, PORT, NULL);
	fds[used++] = bound(AF_INET6, SOCK_STREAM, six, PORT, NULL);
	fds[used++] = bound(AF_INET, SOCK_STREAM, "0.0.0.0", PORT + 1, device);
	fds[used++] = bound(AF_INET, SOCK_DGRAM, four, PORT, NULL);
	fds[used++] = bound(AF_INET6, SOCK_DGRAM, six, PORT, NULL);
	fds[used++] = bound(AF_INET, SOCK_DGRAM, "0.0.0.0", PORT + 1, device);
	struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/work/gone/socket"};
	int listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)), client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(listener, (void *)&name, sizeof name));
	must(listen(listener, 5));
	must(connect(client, (void *)&name, sizeof name));
	int server = must(accept(listener, NULL, NULL)), connected = must(socket(AF_INET, SOCK_DGRAM, 0));
	struct sockaddr_in elsewhere = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr(four) ^ htonl(3)};
	must(connect(connected, (void *)&elsewhere, sizeof elsewhere));

	freeze_here();

	char byte;
	for (int i = 0; i < used; i++) {
		int done = i < 3 ? accept(fds[i], NULL, NULL) : (int)recv(fds[i], &byte, 1, 0);
		expect(done == -1 && (errno == EAGAIN || (i == 2 && errno == EINVAL)), "socket %d: %d, %s", i, done, strerror(errno));
	}
	expect(accept(listener, NULL, NULL) == -1 && errno == EAGAIN, "the unix listener: %s", strerror(errno));
	must(send(client, "u", 1, 0));
	same("what the unix client sent", 1, recv(server, &byte, 1, 0));
	send(connected, "x", 1, 0);
	return report();
}

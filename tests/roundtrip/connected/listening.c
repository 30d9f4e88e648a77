/* For a freeze that keeps only listeners: of connections within the container those stay that were accepted; all others are reset. */
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <poll.h>

static struct sockaddr_in address = {.sin_family = AF_INET};

static int client(void) {
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(fd, (void *)&address, sizeof address));
	return fd;
}

int main(void) {
	address.sin_port = htons(7074);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	char byte;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(listener, (void *)&address, sizeof address));
	must(listen(listener, 8));
	int accepted = client(), server = must(accept(listener, NULL, NULL));
	int quiet = client(), talking = client();
	must(send(accepted, "a", 1, 0));
	must(send(talking, "t", 1, 0));

	freeze_here();

	same("what the accepted one sent", 1, recv(server, &byte, 1, 0));
	same("it", 'a', byte);
	int gone[] = {quiet, talking};
	for (int i = 0; i < 2; i++) {
		struct pollfd seen = {.fd = gone[i], .events = POLLIN};
		must(poll(&seen, 1, 60000));
		same("poll(2)", POLLIN | POLLERR | POLLHUP, seen.revents);
		same("recv(2)", -1, recv(gone[i], &byte, 1, 0));
		same("its error", ECONNRESET, errno);
		same("recv(2) again", 0, recv(gone[i], &byte, 1, 0));
	}
	same("whom the listener has", 0, poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 100));
	int another = client(), its_server = must(accept(listener, NULL, NULL));
	must(send(another, "n", 1, 0));
	same("what another sent", 1, recv(its_server, &byte, 1, 0));
	return report();
}

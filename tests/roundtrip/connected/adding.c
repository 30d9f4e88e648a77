/* Serves the clients of one port of the host: answers each number with the sum of all that it has got from that client. */
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>

int main(int count, char **arguments) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? atoi(arguments[1]) : 0),
		.sin_addr.s_addr = htonl(INADDR_ANY)};
	struct pollfd polls[8] = {{.fd = must(socket(AF_INET, SOCK_STREAM, 0)), .events = POLLIN}};
	int32_t sums[8] = {0}, number;
	nfds_t used = 1;
	must(bind(polls[0].fd, (void *)&address, sizeof address));
	must(listen(polls[0].fd, 8));
	close(open(in_work("ready"), O_CREAT | O_WRONLY, 0666));
	while (poll(polls, used, -1) >= 0) {
		for (nfds_t i = 1; i < used; i++) {
			if (!polls[i].revents)
				continue;
			ssize_t got = recv(polls[i].fd, &number, sizeof number, MSG_WAITALL);
			if (got == sizeof number) {
				sums[i] += number;
				must(send(polls[i].fd, &sums[i], sizeof number, MSG_NOSIGNAL));
			} else {
				differs("client %d: %s", (int)i, got < 0 ? strerror(errno) : "ended");
				close(polls[i].fd);
				polls[i] = polls[--used];
				sums[i] = sums[used];
			}
		}
		if (polls[0].revents && used < 8) {
			sums[used] = 0;
			polls[used++] = (struct pollfd){.fd = must(accept(polls[0].fd, NULL, NULL)), .events = POLLIN};
			must(open(in_work("held"), O_CREAT | O_RDONLY, 0666));
		}
	}
	return 1;
}

/* TCP connections within the container, on descriptor 77, that hold what cannot be kept: the word that a byte is urgent (MSG_OOB) which has
 * yet to come, the word that data have been sent (MSG_ZEROCOPY), or more to come from a peer that is closed; or a listener with such a one that nobody has accepted. */
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "announced";
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7077), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), client = must(socket(AF_INET, SOCK_STREAM, 0));
	static char much[1 << 16];
	char text[8] = "";
	long sent = 0;
	must(bind(listener, (void *)&name, sizeof name));
	must(listen(listener, 1));
	must(connect(client, (void *)&name, sizeof name));
	bool accepted = strcmp(what, "unaccepted");
	int server = accepted ? must(accept(listener, NULL, NULL)) : -1;
	int *one = !accepted ? &listener : strcmp(what, "notified") ? &server : &client;
	must(dup2(*one, 77) | close(*one));
	*one = 77;
	if (!strcmp(what, "notified")) {
		must(setsockopt(client, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)));
		must(send(client, "hello", 5, MSG_ZEROCOPY));
	} else if (!strcmp(what, "orphaned") || !accepted) {
		for (ssize_t got; (got = send(client, much, sizeof much, MSG_DONTWAIT)) > 0;)
			sent += got;
		must(close(client));
	} else {
		/* There is no room for it: the next look whether there is tells of it. */
		for (ssize_t got; (got = send(client, much, sizeof much, MSG_DONTWAIT)) > 0;)
			sent += got;
		must(setsockopt(client, SOL_SOCKET, SO_SNDBUF, &(int){1 << 23}, sizeof(int)));
		must(send(client, "!", 1, MSG_OOB | MSG_DONTWAIT));
		sent++;
		while (recv(server, text, 1, MSG_OOB | MSG_DONTWAIT) < 0 && errno == EINVAL)
			usleep(10000);
	}
	freeze_here();
	if (!accepted)
		server = must(accept(listener, NULL, NULL));
	if (!strcmp(what, "announced"))
		must(setsockopt(server, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)));
	for (ssize_t got; sent > 0; sent -= got)
		if ((got = must(recv(server, much, sizeof much, 0))) == 0)
			break;
	expect(sent == 0, "%ld bytes are lost", sent);
	return report();
}

/* Clients that wait to be accepted and have sent something: many, or of a process that may open but one more file ("full"). */
#include "../programs/unix_names.h"
#include <sys/resource.h>

const char *const names[] = {"/work/server"};
enum { MANY = 100 };

int main(int count, char **arguments) {
	bool full = count > 1 && !strcmp(arguments[1], "full");
	int clients[MANY], server = named(SOCK_STREAM, 0), number = full ? 1 : MANY;
	struct rlimit limit;
	must(listen(server, number));
	for (int i = 0; i < number; i++) {
		clients[i] = must(socket(AF_UNIX, SOCK_STREAM, 0));
		tie(clients[i], 0);
		must(send(clients[i], "hello", 5, 0));
	}
	must(getrlimit(RLIMIT_NOFILE, &limit));
	if (full)
		must(setrlimit(RLIMIT_NOFILE, &(struct rlimit){clients[0] + 2, limit.rlim_max}));
	freeze_here();
	must(setrlimit(RLIMIT_NOFILE, &limit));
	must(fcntl(server, F_SETFL, O_NONBLOCK));
	for (int i = 0; i < number; i++) {
		char found[8];
		int accepted = must(accept(server, NULL, NULL));
		same("what has come", 5, recv(accepted, found, sizeof found, MSG_DONTWAIT));
		same("what can be sent", 1, send(clients[i], "x", 1, MSG_NOSIGNAL));
	}
	return report();
}

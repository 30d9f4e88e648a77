/* A listening unix socket, on descriptor 77, with a client that nobody has accepted, that has a path of its own, and has sent something already. */
#include "../programs/unix_names.h"

const char *const names[] = {"@waited for", "/work/client"};

int main(void) {
	int listener = named(SOCK_STREAM, 0), client = named(SOCK_STREAM, 1);
	char found[8];
	must(dup2(listener, 77) | close(listener));
	must(listen(77, 3));
	tie(client, 0);
	must(send(client, "hello", 5, 0));
	freeze_here();
	int accepted = must(accept(77, NULL, NULL));
	expect(recv(accepted, found, 8, MSG_DONTWAIT) == 5, "what was sent is lost");
	return report();
}

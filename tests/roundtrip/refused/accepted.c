/* Has accepted a client from outside of the container. */
#include "../programs/unix_names.h"

const char *const names[] = {"/work/inside"};

int main(void) {
	int listener = named(SOCK_STREAM, 0);
	char found[8];
	must(listen(listener, 1));
	say("listening");
	int server = must(accept(listener, NULL, NULL));
	expect(recv(server, found, 5, MSG_WAITALL) == 5, "nothing comes");
	freeze_here();
	is_named("the server", server, 0, false);
	same("reading without a peer", 0, recv(server, found, 8, MSG_DONTWAIT));
	tie(must(socket(AF_UNIX, SOCK_STREAM, 0)), 0);
	must(accept(listener, NULL, NULL));
	return report();
}

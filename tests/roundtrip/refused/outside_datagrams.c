/* A datagram socket, on descriptor 77, that is connected to one outside of the container. */
#include "../programs/wait.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
	struct sockaddr_un path = {AF_UNIX, "/work/outside"};
	int file = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(connect(file, (void *)&path, sizeof path));
	must(dup2(file, 77) | close(file));
	freeze_here();
	expect(send(77, "after", 5, 0) == 5, "not connected: %s", strerror(errno));
	report();
	return 0;
}

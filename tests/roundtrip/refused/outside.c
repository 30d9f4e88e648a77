/* Is connected, on descriptor 77, with a server outside of the container, to which it speaks before and after. */
// arguments: unix | tcp
#include "../programs/wait.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int count, char **arguments) {
	bool tcp = count > 1 && arguments[1][0] == 't';
	char answer[8] = "";
	struct sockaddr_un path = {AF_UNIX, "outside"};
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(count > 2 ? atoi(arguments[2]) : 0),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int file = must(socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0));
	must(connect(file, tcp ? (void *)&address : (void *)&path, tcp ? sizeof address : sizeof path));
	must(dup2(file, 77));
	close(file);
	must(send(77, "before", 6, 0));
	expect(recv(77, answer, 6, MSG_WAITALL) == 6, "no answer");
	freeze_here();
	signal(SIGPIPE, SIG_IGN);
	ssize_t sent = send(77, "after!", 6, 0);
	int error = sent < 0 ? errno : 0;
	ssize_t got = recv(77, answer, 6, MSG_WAITALL);
	if (got == 6 && !memcmp(answer, "after!", 6))
		return report();
	differs("reset: send gives %ld (%s), recv %ld (%s)", sent, strerror(error), got, got < 0 ? strerror(errno) : "");
	return 0;
}

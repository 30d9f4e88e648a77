/* Who is at the other end of unix sockets (SO_PEERCRED) between pid namespaces: below, 0 for all above.
   README tells what is lost of those within one, and the second time. */
// capabilities: CAP_SYS_ADMIN
// never: restored_twice
#include "wait.h"
#include <sys/socket.h>
#include <sys/un.h>

static pid_t peer_of(int fd) {
	struct ucred peer;
	socklen_t size = sizeof peer;
	must(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size));
	return peer.pid;
}

static void name(struct sockaddr_un *into, const char *which) {
	*into = (struct sockaddr_un){.sun_family = AF_UNIX};
	strcpy(into->sun_path + 1, which);
}

static int listening(const char *which) {
	struct sockaddr_un at;
	name(&at, which);
	int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(bind(fd, (void *)&at, sizeof at)), must(listen(fd, 4));
	return fd;
}

static int calling(const char *which) {
	struct sockaddr_un at;
	name(&at, which);
	int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(connect(fd, (void *)&at, sizeof at));
	return fd;
}

int main(void) {
	int ready[2], pair[2];
	char byte;
	must(pipe(ready)), must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int outer = listening("outer");
	pid_t child = must(syscall(SYS_clone, SIGCHLD | CLONE_NEWPID, 0, 0, 0, 0));
	if (child == 0) {
		int inner = listening("inner"), up = calling("outer");
		must(write(ready[1], "x", 1));
		int down = must(accept(inner, NULL, NULL));
		pid_t was[] = {peer_of(up), peer_of(down), peer_of(pair[0])};
		must(write(ready[1], "x", 1));
		wait_for("check");
		same("inside, of who is above, who had listened", was[0], peer_of(up));
		same("inside, of who is above, who had called", was[1], peer_of(down));
		same("inside, of a pair", was[2], peer_of(pair[0]));
		_exit(0);
	}
	must(read(ready[0], &byte, 1));
	int up = must(accept(outer, NULL, NULL)), down = calling("inner");
	must(read(ready[0], &byte, 1));
	pid_t was[] = {peer_of(up), peer_of(down), peer_of(pair[1])};
	freeze_here();
	spoil(was[0]++;);
	same("who had called from below", was[0], peer_of(up));
	same("who had listened below", was[1], peer_of(down));
	same("of a pair", was[2], peer_of(pair[1]));
	join(child);
	return report();
}

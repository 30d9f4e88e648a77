/* Who is at the other end of a unix socket (SO_PEERCRED, SO_PEERGROUPS): of pairs, listeners and connections of several processes and
 * users, also of one that has ended. */
// capabilities: CAP_SETUID CAP_SETGID
#include "wait.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>

static pid_t *pids; /* who listens and who connects */

static void become(uid_t user, gid_t group) {
	must(setgroups(2, (gid_t[]){group + 1, group + 2}));
	must(setresgid(group, group, group));
	must(setresuid(user, user, user));
}

static void is(const char *what, int socket, pid_t pid, uid_t user, gid_t group) {
	struct ucred peer = {0};
	socklen_t length = sizeof peer;
	must(getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length));
	expect((!pid || peer.pid == pid) && peer.uid == user && peer.gid == group, "%s: process %d, user %d, group %d", what, peer.pid, peer.uid, peer.gid);
	gid_t groups[64];
	length = sizeof groups;
	if (user) {
		must(getsockopt(socket, SOL_SOCKET, 59 /* SO_PEERGROUPS */, groups, &length));
		expect(length == 2 * sizeof *groups && groups[0] == group + 1 && groups[1] == group + 2, "%s: other groups (%d bytes)", what, length);
	}
}

static struct sockaddr_un named(const char *name) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strcpy(address.sun_path, name);
	return address;
}

static void step(int number) {
	char name[16];
	snprintf(name, sizeof name, "step%d", number);
	say(name);
}

static void await(int number) {
	char name[16];
	snprintf(name, sizeof name, "step%d", number);
	wait_for(name);
}

static void listens(void) {
	struct sockaddr_un address = named("/tmp/peers");
	int listener = must(socket(AF_UNIX, SOCK_STREAM, 0)), gone = must(socket(AF_UNIX, SOCK_SEQPACKET, 0)), pair[2];
	must(bind(listener, (void *)&address, sizeof address));
	address = named("/tmp/gone");
	must(bind(gone, (void *)&address, sizeof address));
	become(1000, 100);
	must(listen(listener, 5));
	must(listen(gone, 5));
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	step(1);
	int one = must(accept(listener, NULL, NULL)), two = must(accept(gone, NULL, NULL));
	must(close(gone)); /* what has connected to it stays */
	must(write(one, "hello", 5));
	pid_t forked = must(fork());
	if (forked == 0) {
		step(2);
		wait_for("check");
		is("a pair that was inherited", pair[0], pids[0], 1000, 100);
		is("and its other end", pair[1], pids[0], 1000, 100);
		_exit(0);
	}
	wait_for("check");
	is("the listener", listener, pids[0], 1000, 100);
	is("one that was accepted", one, pids[1], 2000, 200);
	is("one whose listener is gone", two, pids[1], 2000, 200);
	await(4);
	int three = must(accept(listener, NULL, NULL));
	is("a new one", three, pids[1], 2000, 200);
	join(forked);
	_exit(0);
}

static void connects(void) {
	struct sockaddr_un address = named("/tmp/peers");
	char text[6] = "";
	await(1);
	chmod("/tmp/peers", 0666);
	chmod("/tmp/gone", 0666);
	become(2000, 200);
	int one = must(socket(AF_UNIX, SOCK_STREAM, 0)), two = must(socket(AF_UNIX, SOCK_SEQPACKET, 0)), three = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(one, (void *)&address, sizeof address));
	address = named("/tmp/gone");
	must(connect(two, (void *)&address, sizeof address));
	step(3);
	wait_for("check");
	is("the server", one, pids[0], 1000, 100);
	is("a server that is gone", two, pids[0], 1000, 100);
	must(read(one, text, 5));
	expect(!strcmp(text, "hello"), "the server says %s", text);
	address = named("/tmp/peers");
	must(connect(three, (void *)&address, sizeof address));
	is("the server once more", three, pids[0], 1000, 100);
	step(4);
	_exit(0);
}

int main(void) {
	int pair[2], of_root[2];
	pids = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	must(chmod(in_work(""), 0777));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, of_root));
	pid_t children[3] = {must(fork())};
	if (children[0] == 0) {
		pids[0] = getpid();
		listens();
	}
	if ((children[1] = must(fork())) == 0) {
		pids[1] = getpid();
		connects();
	}
	if ((children[2] = must(fork())) == 0) {
		become(3000, 300);
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		if (must(fork()) == 0) {
			while (getppid() != 1)
				usleep(1000);
			step(5);
			wait_for("check");
			is("a pair of one that has ended", pair[0], 0, 3000, 300);
			_exit(0);
		}
		_exit(0);
	}
	join(children[2]);
	await(2);
	await(3);
	await(5);
	freeze_here();

	spoil(become(9, 9); must(socketpair(AF_UNIX, SOCK_STREAM, 0, of_root)););
	is("the first process's", of_root[0], 1, 0, 0);
	join(children[0]);
	join(children[1]);
	must(wait(NULL));
	return report();
}

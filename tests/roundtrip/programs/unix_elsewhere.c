/* Unix sockets whose paths are found in another root directory or mount namespace, and datagram sockets whose peer is closed. */
// arguments: chroot | mounts
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT
#include "unix_names.h"
#include <sys/mount.h>

enum { SERVER, BOX, LOST, GONE };
const char *const names[] = {"/server", "/box", "/lost", "@gone"};
static const char *const places[] = {"/tmp/one", "/tmp/two"};

static void go(const char *how, const char *place) {
	if (!strcmp(how, "mounts")) {
		must(unshare(CLONE_NEWNS));
		must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
		must(mount("there", place, "tmpfs", 0, NULL));
	}
	must(chroot(place) | chdir("/"));
}

static void live(const char *how, int who, int work) {
	char text[8] = "", hello = '0' + who;
	go(how, places[who]);
	int server = named(SOCK_STREAM, SERVER), client = must(socket(AF_UNIX, SOCK_STREAM, 0)), box = named(SOCK_DGRAM, BOX), writer = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(listen(server, 4));
	tie(client, SERVER), tie(writer, BOX);
	int accepted = must(accept(server, NULL, NULL));
	must(send(client, &hello, 1, 0) + send(writer, &hello, 1, 0));
	/* One has only the name of its peer left, whose file is another's by now; the other has an answer of its own. */
	int lost = named(SOCK_DGRAM, LOST), orphan = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	tie(orphan, LOST);
	close(lost);
	must(unlink(names[LOST]));
	lost = named(SOCK_DGRAM, LOST);
	int gone = -1, heir = -1;
	if (who == 0) {
		struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/heir"};
		gone = named(SOCK_DGRAM, GONE), heir = must(socket(AF_UNIX, SOCK_DGRAM, 0));
		must(bind(heir, (void *)&name, sizeof name));
		tie(heir, GONE);
		must(sendto(gone, "last", 4, 0, (void *)&name, sizeof name));
		close(gone);
	}

	close(must(openat(work, who ? "ready" : "first", O_WRONLY | O_CREAT, 0666)));
	while (faccessat(work, "check", F_OK, 0) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	spoil(must(unlink(names[SERVER])););

	must(fchdir(work));
	same("what the client sent", 1, recv(accepted, text, 8, MSG_DONTWAIT));
	same("it", hello, text[0]);
	same("what is in the box", 1, recv(box, text, 8, MSG_DONTWAIT));
	same("it", hello, text[0]);
	is_named("the client's server", client, SERVER, true);
	int another = must(socket(AF_UNIX, SOCK_STREAM, 0));
	struct sockaddr_un name;
	socklen_t size = address(SERVER, &name);
	expect(connect(another, (void *)&name, size) == 0 && accept(server, NULL, NULL) >= 0, "the server is not reached: %s", strerror(errno));
	expect(send(writer, "x", 1, 0) == 1 && recv(box, text, 8, MSG_DONTWAIT) == 1, "the box is not reached");
	is_named("who is no more", orphan, LOST, true);
	expect(send(orphan, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "one writes to who is no more: %s", strerror(errno));
	same("what another got of that", -1, recv(lost, text, 8, MSG_DONTWAIT));
	if (who == 0) {
		size = sizeof name;
		same("the answer", 4, recvfrom(heir, text, 8, MSG_DONTWAIT, (void *)&name, &size));
		expect(size == offsetof(struct sockaddr_un, sun_path) + 5 && !memcmp(name.sun_path, "\0gone", 5), "its sender is another");
		expect(send(heir, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "one writes to who is gone: %s", strerror(errno));
	}
}

int main(int count, char **arguments) {
	int work = must(open("/work", O_PATH | O_DIRECTORY));
	pid_t children[2];
	setenv("WORK", ".", 1);
	for (int i = 0; i < 2; i++) {
		must(mkdir(places[i], 0755));
		if ((children[i] = must(fork())) == 0) {
			live(count > 1 ? arguments[1] : "chroot", i, work);
			_exit(0);
		}
		if (i == 0)
			while (faccessat(work, "first", F_OK, 0) != 0)
				usleep(5000);
	}
	for (int i = 0; i < 2; i++)
		join(children[i]);
	must(fchdir(work));
	return report();
}

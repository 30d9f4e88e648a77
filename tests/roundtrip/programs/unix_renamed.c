/* Listening sockets whose paths were renamed, or linked and unlinked, since they were bound: clients find them where they are now. */
#include "wait.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { SOCKETS = 4 };
static const char *const before[SOCKETS] = {"/work/new.1", "/tmp/new.2", "/work/new.3", "/tmp/new.4"};
static const char *const after[SOCKETS] = {"/work/renamed", "/tmp/linked", "/work/linked", "/tmp/renamed"};

static struct sockaddr_un named(const char *path) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	strcpy(name.sun_path, path);
	return name;
}

int main(void) {
	int sockets[SOCKETS];
	struct sockaddr_un name;
	struct stat node;
	for (int i = 0; i < SOCKETS; i++) {
		sockets[i] = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
		name = named(before[i]);
		must(bind(sockets[i], (struct sockaddr *)&name, sizeof name));
		must(chmod(before[i], 0710));
		must(listen(sockets[i], 5));
		if (strstr(after[i], "renamed"))
			must(rename(before[i], after[i]));
		else {
			must(link(before[i], after[i]));
			must(unlink(before[i]));
		}
	}

	freeze_here();
	spoil(must(unlink(after[0])););

	for (int i = 0; i < SOCKETS; i++) {
		int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
		name = named(after[i]);
		if (connect(client, (struct sockaddr *)&name, sizeof name) != 0) {
			differs("connecting to %s: %s", after[i], strerror(errno));
			continue;
		}
		expect(accept(sockets[i], NULL, NULL) >= 0, "%s: it is another's", after[i]);
		socklen_t size = sizeof name;
		must(getsockname(sockets[i], (struct sockaddr *)&name, &size));
		expect(!strcmp(name.sun_path, before[i]), "%s: its name is %s", after[i], name.sun_path);
		must(stat(after[i], &node));
		same(after[i], S_IFSOCK | 0710, node.st_mode);
		expect(access(before[i], F_OK) != 0, "%s: it has its old path again", after[i]);
	}
	return report();
}

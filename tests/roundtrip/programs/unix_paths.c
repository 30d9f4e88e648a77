/* Unix sockets that were bound to a relative path, in a directory that is gone, or whose path is elsewhere or another file by now. */
#include "unix_names.h"

enum { PLAIN, BELOW, DOTTED, BOX, REMOVED, MOVED, REPLACED, RENAMED };
const char *const names[] = {"plain", "below/it", "./dotted", "box", "/work/removed/it", "/work/moved", "/work/replaced", "renamed"};

static void hears(const char *what, const char *path, int server) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	char found[8];
	strcpy(name.sun_path, path);
	int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	if (connect(client, (struct sockaddr *)&name, sizeof name) != 0) {
		differs("%s can't be reached: %s", what, strerror(errno));
		return;
	}
	int accepted = must(accept(server, NULL, NULL));
	expect(send(client, "hello", 5, 0) == 5 && recv(accepted, found, 8, 0) == 5, "%s hears nothing", what);
	close(accepted);
	close(client);
}

int main(void) {
	int servers[8], clients[8], accepted[8];
	char found[16];
	must(mkdir("/work/place", 0755) | mkdir("/work/place/below", 0755) | mkdir("/work/removed", 0700) | mkdir("/work/other", 0755));
	must(chdir("/work/place"));
	for (int i = 0; i < 8; i++) {
		servers[i] = named(i == BOX ? SOCK_DGRAM : SOCK_STREAM, i);
		if (i == BOX)
			continue;
		must(listen(servers[i], 5));
		tie(clients[i] = must(socket(AF_UNIX, SOCK_STREAM, 0)), i);
		accepted[i] = must(accept(servers[i], NULL, NULL));
	}
	must(chmod("plain", 0705));
	int writer = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	tie(writer, BOX);
	must(send(writer, "a letter", 8, 0));
	must(close(servers[DOTTED]) | close(accepted[DOTTED]));
	must(unlink(names[REMOVED]) | rmdir("/work/removed") | rename(names[MOVED], "/work/other/place") | rename("renamed", "renamed too"));
	must(unlink(names[REPLACED]));
	close(must(open(names[REPLACED], O_WRONLY | O_CREAT, 0640)));
	int by_path[3] = {must(open("plain", O_PATH)), must(open("/work/other/place", O_PATH | O_CLOEXEC)), must(open("renamed too", O_PATH))};
	must(rename("renamed too", "renamed once more"));
	must(mknod("unbound", S_IFSOCK | 0640, 0));
	int unbound = must(open("unbound", O_PATH));
	must(unlink("unbound"));
	must(chdir("/"));

	freeze_here();
	spoil(must(close(servers[PLAIN])););

	for (int i = 0; i < 8; i++) {
		if (i != DOTTED)
			is_named("a server", servers[i], i, false);
		if (i != BOX)
			is_named("a client's peer", clients[i], i, true);
		if (i == BOX || i == DOTTED)
			continue;
		is_named("an accepted one", accepted[i], i, false);
		expect(send(clients[i], "more", 4, MSG_NOSIGNAL) == 4 && recv(accepted[i], found, 8, MSG_DONTWAIT) == 4, "%s isn't connected", names[i]);
	}
	expect(recv(servers[BOX], found, 16, MSG_DONTWAIT) == 8 && !memcmp(found, "a letter", 8), "the letter is lost");
	expect(send(writer, "another", 7, 0) == 7 && recv(servers[BOX], found, 16, MSG_DONTWAIT) == 7, "nobody gets what is written");
	struct stat path = {0};
	expect(stat("/work/place/plain", &path) == 0 && (path.st_mode & 0777) == 0705, "the path has mode %o", path.st_mode);
	hears("the plain one", "/work/place/plain", servers[PLAIN]);
	hears("the one below", "/work/place/below/it", servers[BELOW]);
	hears("the one that moved", "/work/other/place", servers[MOVED]);
	hears("the one that was renamed", "/work/place/renamed once more", servers[RENAMED]);
	for (int i = 0; i < 3; i++) {
		char link[32];
		sprintf(link, "/proc/self/fd/%d", by_path[i]);
		hears("one that O_PATH has opened", link, servers[i == 0 ? PLAIN : i == 1 ? MOVED : RENAMED]);
	}
	expect(fstat(unbound, &path) == 0 && S_ISSOCK(path.st_mode) && path.st_nlink == 0, "the unlinked file of no socket is another");
	expect(stat("/work/removed", &path) == -1, "the removed directory is back");
	expect(stat("/work/place/dotted", &path) == 0 && S_ISSOCK(path.st_mode), "the closed one's path has gone");
	expect(stat(names[REPLACED], &path) == 0 && S_ISREG(path.st_mode), "the file in the place of a path has gone");
	expect(stat(names[MOVED], &path) == -1, "the path that moved is back");
	return report();
}

/* Unix sockets that were bound to a relative path, whose directories were moved, or renamed, since; and that began with "..". */
#include "unix_names.h"

enum { BELOW, DEEPER, BOX, BESIDE, CLOSED, COUNT };
const char *const names[] = {"below/it", "a/./b/c", "letters/box", "../upwards", "below/closed"};
static const char *const now_at[] = {"/work/moved/it", "/work/place/other/b/renamed", "/tmp/letters too/box", "/work/upwards", "/work/moved/closed"};

static void hears(int which, const char *path, int server) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	char found[8];
	strcpy(name.sun_path, path);
	int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	if (connect(client, (struct sockaddr *)&name, sizeof name) != 0) {
		differs("%s can't be reached at %s: %s", names[which], path, strerror(errno));
		return;
	}
	int accepted = must(accept(server, NULL, NULL));
	expect(send(client, "hello", 5, 0) == 5 && recv(accepted, found, 8, 0) == 5, "%s hears nothing", names[which]);
	must(close(accepted) | close(client));
}

int main(void) {
	int servers[COUNT], clients[COUNT], accepted[COUNT];
	char found[16];
	must(mkdir("/work/place", 0755) | mkdir("/work/place/below", 0755) | mkdir("/work/place/a", 0755) | mkdir("/work/place/a/b", 0755) | mkdir("/tmp/letters", 0755));
	for (int i = 0; i < COUNT; i++) {
		must(chdir(i == BOX ? "/tmp" : "/work/place"));
		servers[i] = named(i == BOX ? SOCK_DGRAM : SOCK_STREAM, i);
		clients[i] = must(socket(AF_UNIX, i == BOX ? SOCK_DGRAM : SOCK_STREAM, 0));
		if (i != BOX)
			must(listen(servers[i], 5));
		tie(clients[i], i);
		if (i != BOX)
			accepted[i] = must(accept(servers[i], NULL, NULL));
	}
	must(send(clients[BOX], "a letter", 8, 0));
	must(chmod("below/it", 0705));
	must(close(servers[CLOSED]));
	must(rename("below", "/work/moved") | rename("a", "other") | rename("other/b/c", "other/b/renamed") | rename("/tmp/letters", "/tmp/letters too"));
	int by_path = must(open(now_at[DEEPER], O_PATH));
	must(chdir("/"));

	freeze_here();
	spoil(must(close(servers[BELOW])););

	for (int i = 0; i < COUNT; i++) {
		struct stat path = {0};
		expect(stat(now_at[i], &path) == 0 && S_ISSOCK(path.st_mode), "%s is not at %s", names[i], now_at[i]);
		is_named("a client's peer", clients[i], i, true);
		if (i != CLOSED)
			is_named("a server", servers[i], i, false);
		if (i == BOX)
			continue;
		is_named("an accepted one", accepted[i], i, false);
		expect(send(clients[i], "more", 4, MSG_NOSIGNAL) == 4 && recv(accepted[i], found, 8, MSG_DONTWAIT) == 4, "%s isn't connected", names[i]);
		if (i != CLOSED)
			hears(i, now_at[i], servers[i]);
	}
	expect(recv(servers[BOX], found, 16, MSG_DONTWAIT) == 8 && !memcmp(found, "a letter", 8), "the letter is lost");
	expect(send(clients[BOX], "another", 7, 0) == 7 && recv(servers[BOX], found, 16, MSG_DONTWAIT) == 7, "nobody gets what is written");
	struct stat path = {0};
	expect(stat(now_at[BELOW], &path) == 0 && (path.st_mode & 0777) == 0705, "the path has mode %o", path.st_mode);
	hears(DEEPER, "/proc/self/fd/0" + 0 * must(dup2(by_path, 0)), servers[DEEPER]);
	const char *const gone[] = {"/work/place/below", "/work/place/a", "/tmp/letters", "/work/.woodfrog-upwards", "/work/moved/.woodfrog-it", "/work/place/other/b/.woodfrog-renamed"};
	for (int i = 0; i < 6; i++)
		expect(stat(gone[i], &path) == -1 && errno == ENOENT, "%s is there", gone[i]);
	return report();
}

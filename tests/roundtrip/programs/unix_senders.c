/* Datagrams that wait, of senders with names and without, of some that are closed, and of an end of a pair that got its name between two. */
#include "unix_names.h"

enum { BOX, ABSTRACT_BOX, LIVING, CLOSED, TAKEN, CLOSED_ABSTRACT, PAIRED };
const char *const names[] = {"/work/box", "@box", "/work/living", "/work/closed", "/work/taken", "@closed", "/work/paired"};

/* `from` is -1 for a sender without a name. */
static void letter(int box, const char *text, int from) {
	struct sockaddr_un sender = {0}, wanted = {0};
	char found[32] = "";
	socklen_t size = sizeof sender, wanted_size = from < 0 ? 0 : address(from, &wanted);
	ssize_t got = recvfrom(box, found, sizeof found, MSG_DONTWAIT, (struct sockaddr *)&sender, &size);
	expect(got == (ssize_t)strlen(text) && !strcmp(found, text), "not %s, but %.20s", text, found);
	expect(size == wanted_size && !memcmp(&sender, &wanted, size), "%s is from %s%s", text, sender.sun_path, sender.sun_path + 1);
}

static void write_to(int box, int file, const char *text) {
	struct sockaddr_un to;
	socklen_t size = address(box, &to);
	must(sendto(file, text, strlen(text), 0, (struct sockaddr *)&to, size));
}

int main(void) {
	int boxes[2], pair[2], writers[6];
	for (int i = 0; i < 2; i++) {
		boxes[i] = named(SOCK_DGRAM, i);
		write_to(i, writers[LIVING] = named(SOCK_DGRAM, LIVING), "living");
		write_to(i, writers[CLOSED] = named(SOCK_DGRAM, CLOSED), "closed");
		write_to(i, writers[0] = must(socket(AF_UNIX, SOCK_DGRAM, 0)), "nobody");
		write_to(i, writers[TAKEN] = named(SOCK_DGRAM, TAKEN), "taken");
		write_to(i, writers[CLOSED_ABSTRACT] = named(SOCK_DGRAM, CLOSED_ABSTRACT), "abstract");
		write_to(i, writers[CLOSED], "once more");
		must(close(writers[CLOSED]) | close(writers[TAKEN]) | close(writers[CLOSED_ABSTRACT]) | unlink(names[CLOSED]) | unlink(names[TAKEN]));
		if (i == 0)
			must(close(writers[LIVING]) | unlink(names[LIVING]));
	}
	must(mkdir(names[TAKEN], 0700));
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	must(send(pair[0], "before", 6, 0));
	struct sockaddr_un name;
	socklen_t size = address(PAIRED, &name);
	must(bind(pair[0], (struct sockaddr *)&name, size));
	must(send(pair[0], "after", 5, 0));

	freeze_here();
	spoil(must(recv(boxes[1], (char[1]){0}, 1, 0)););

	for (int i = 0; i < 2; i++) {
		letter(boxes[i], "living", LIVING);
		letter(boxes[i], "closed", CLOSED);
		letter(boxes[i], "nobody", -1);
		letter(boxes[i], "taken", TAKEN);
		letter(boxes[i], "abstract", CLOSED_ABSTRACT);
		letter(boxes[i], "once more", CLOSED);
	}
	letter(pair[1], "before", PAIRED); /* a sender's name is the one that it has by now */
	letter(pair[1], "after", PAIRED);
	write_to(BOX, writers[LIVING], "more");
	letter(boxes[BOX], "more", LIVING);
	struct stat found = {0};
	expect(stat(names[TAKEN], &found) == 0 && S_ISDIR(found.st_mode), "a directory has gone");
	expect(stat(names[CLOSED], &found) == -1, "a path is back");
	expect(stat(names[LIVING], &found) == 0 && S_ISSOCK(found.st_mode), "a path has gone");
	return report();
}

/* Datagram unix sockets that are connected to one with a name, which itself may be connected to another. */
#include "unix_names.h"

enum { BY_PATH, ABSTRACT, GONE };
const char *const names[] = {"/work/mailbox", "@mailbox", "/tmp/gone"};

int main(void) {
	int boxes[3], writers[3];
	char found[32];
	for (int i = 0; i < 3; i++) {
		boxes[i] = named(SOCK_DGRAM | SOCK_NONBLOCK, i);
		tie(writers[i] = must(socket(AF_UNIX, SOCK_DGRAM, 0)), i);
		must(send(writers[i], "a letter", 8, 0));
	}
	must(chmod(names[BY_PATH], 0));
	must(unlink(names[GONE]));
	/* From now on nobody else can write to this one. */
	tie(boxes[GONE], ABSTRACT);

	freeze_here();
	spoil(must(dup2(writers[0], writers[1])););

	for (int i = 0; i < 3; i++) {
		is_named("a writer", writers[i], -1, false);
		is_named("a writer's peer", writers[i], i, true);
		expect(recv(boxes[i], found, 32, 0) == 8 && !memcmp(found, "a letter", 8), "the letter in %d is lost", i);
		if (i == GONE)
			expect(send(writers[i], "another", 7, 0) == -1 && errno == EPERM, "the last box takes more");
		else
			expect(send(writers[i], "another", 7, 0) == 7 && recv(boxes[i], found, 32, 0) == 7, "nobody gets what %d writes", i);
	}
	struct stat path = {0};
	expect(stat(names[GONE], &path) == -1, "the unlinked path is back");
	expect(stat(names[BY_PATH], &path) == 0 && (path.st_mode & 0777) == 0, "the path has mode %o", path.st_mode);
	is_named("a box's peer", boxes[GONE], ABSTRACT, true);
	expect(send(boxes[GONE], "forward", 7, 0) == 7 && recv(boxes[ABSTRACT], found, 32, 0) == 7, "nobody gets what a box writes");
	return report();
}

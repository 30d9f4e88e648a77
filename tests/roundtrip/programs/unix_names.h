/* Unix sockets by the index of their name in `names`, which the program has; "@" begins an abstract one. */
#pragma once
#include "wait.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

extern const char *const names[];

static inline socklen_t address(int which, struct sockaddr_un *name) {
	*name = (struct sockaddr_un){.sun_family = AF_UNIX};
	strcpy(name->sun_path, names[which]);
	if (names[which][0] == '@')
		name->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + strlen(names[which]) + (names[which][0] != '@');
}

static inline int named(int type, int which) {
	struct sockaddr_un name;
	int file = must(socket(AF_UNIX, type, 0));
	socklen_t size = address(which, &name);
	must(bind(file, (struct sockaddr *)&name, size));
	return file;
}

static inline void tie(int file, int which) {
	struct sockaddr_un name;
	socklen_t size = address(which, &name);
	must(connect(file, (struct sockaddr *)&name, size));
}

/* `which` is -1 for a socket without a name. */
static inline void is_named(const char *what, int file, int which, bool peer) {
	struct sockaddr_un found = {0}, wanted = {0};
	socklen_t size = sizeof found, wanted_size = which < 0 ? sizeof(sa_family_t) : address(which, &wanted);
	must(peer ? getpeername(file, (struct sockaddr *)&found, &size) : getsockname(file, (struct sockaddr *)&found, &size));
	expect(size == wanted_size && !memcmp(found.sun_path, wanted.sun_path, size - sizeof(sa_family_t)), "%s: %d is named %s%s", what, which, found.sun_path, found.sun_path + 1);
}

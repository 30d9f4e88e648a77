/* fanotify(7): groups of every class, with marks on files, directories, mounts and file systems, and what they ignore. */
// arguments: descriptors | identities | permissions | unread
// capabilities: CAP_SYS_ADMIN
#include "wait.h"
#include <sys/fanotify.h>

static char buffer[8192] __attribute__((aligned(8)));

static const char *path(const char *name) {
	static char found[4][256];
	static int turn;
	return strcpy(found[turn++ % 4], in_work(name));
}

static void touch(const char *name) { close(must(open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600))); }

/* Return what one event tells of a file, or 0 if there is none. */
static uint64_t event(int group, const char *name) {
	char link[64], found[256] = "";
	ssize_t got = read(group, buffer, sizeof(struct fanotify_event_metadata));
	if (got <= 0)
		return 0;
	struct fanotify_event_metadata *one = (void *)buffer;
	snprintf(link, sizeof link, "/proc/self/fd/%d", one->fd);
	must(readlink(link, found, sizeof found - 1));
	close(one->fd);
	if (strcmp(found, name))
		differs("an event of %s instead of %s", found, name);
	return one->mask;
}

static void descriptors(void) {
	int group = must(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC)), whole = must(fanotify_init(FAN_NONBLOCK, O_RDONLY));
	const char *directory = path("directory"), *inside = path("directory/inside"), *single = path("single"), *shared = "/dev/shm/file";
	must(mkdir(directory, 0700));
	touch(inside);
	touch(single);
	touch(shared);
	must(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, directory));
	must(fanotify_mark(group, FAN_MARK_ADD, FAN_MODIFY | FAN_CLOSE_WRITE, AT_FDCWD, single));
	must(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE, AT_FDCWD, single));
	must(fanotify_mark(whole, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, "/dev/shm"));
	must(fanotify_mark(whole, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, AT_FDCWD, "/dev/shm"));

	freeze_here();
	spoil(must(fanotify_mark(group, FAN_MARK_REMOVE, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, directory)););

	same("nothing has happened", 0, event(group, ""));
	same("flags", O_RDWR | O_NONBLOCK, fcntl(group, F_GETFL) & ~0100000);
	close(must(open(inside, O_RDONLY)));
	same("opening in the directory", FAN_OPEN, event(group, inside));
	int fd = must(open(single, O_WRONLY));
	must(write(fd, "x", 1));
	close(fd);
	same("writing, the close ignored", FAN_MODIFY, event(group, single));
	same("nothing else", 0, event(group, ""));
	fd = must(open(shared, O_WRONLY));
	same("opening in the file system", FAN_OPEN, event(whole, shared));
	close(fd);
	same("closing in the mount", FAN_CLOSE_WRITE, event(whole, shared));
}

static uint64_t named(int group, const char *name) {
	ssize_t got = read(group, buffer, sizeof buffer);
	if (got <= 0)
		return 0;
	struct fanotify_event_metadata *one = (void *)buffer;
	struct fanotify_event_info_fid *info = (void *)(one + 1);
	struct file_handle *handle = (void *)info->handle;
	same("the kind of news", FAN_EVENT_INFO_TYPE_DFID_NAME, info->hdr.info_type);
	if (strcmp((char *)handle->f_handle + handle->handle_bytes, name))
		differs("an event of %s instead of %s", handle->f_handle + handle->handle_bytes, name);
	return one->mask;
}

static void identities(void) {
	int group = must(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME | FAN_NONBLOCK, 0)), other = must(fanotify_init(FAN_REPORT_FID | FAN_NONBLOCK, 0));
	const char *directory = path("directory"), *gone = path("gone");
	must(mkdir(directory, 0700));
	must(fanotify_mark(group, FAN_MARK_ADD, FAN_CREATE | FAN_DELETE | FAN_ONDIR, AT_FDCWD, directory));
	touch(gone);
	int held = must(open(gone, O_RDWR));
	must(fanotify_mark(other, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, gone));
	must(unlink(gone));

	freeze_here();
	spoil(must(fanotify_mark(group, FAN_MARK_REMOVE, FAN_CREATE, AT_FDCWD, directory)););

	same("nothing has happened", 0, named(group, ""));
	touch(path("directory/new"));
	same("making a file", FAN_CREATE, named(group, "new"));
	must(mkdir(path("directory/below"), 0700));
	same("making a directory", FAN_CREATE | FAN_ONDIR, named(group, "below"));
	must(unlink(path("directory/new")));
	same("removing a file", FAN_DELETE, named(group, "new"));
	must(write(held, "x", 1));
	ssize_t got = read(other, buffer, sizeof buffer);
	same("writing to one that was deleted", FAN_MODIFY, got > 0 ? ((struct fanotify_event_metadata *)buffer)->mask : 0);
}

static void permissions(void) {
	int group = must(fanotify_init(FAN_CLASS_CONTENT | FAN_UNLIMITED_MARKS, O_RDONLY));
	const char *guarded = path("guarded");
	touch(guarded);
	must(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, guarded));

	freeze_here();
	spoil(must(fanotify_mark(group, FAN_MARK_REMOVE, FAN_OPEN_PERM, AT_FDCWD, guarded)); alarm(2););

	for (int i = 0; i < 2; i++) {
		pid_t child = must(fork());
		if (child == 0) {
			close(group);
			int fd = open(guarded, O_RDONLY);
			_exit(i ? fd < 0 : fd >= 0 || errno != EPERM);
		}
		struct fanotify_event_metadata one;
		spoil(differs("nobody asks"); break;);
		same("an event", sizeof one, read(group, &one, sizeof one));
		same("somebody asks", FAN_OPEN_PERM, one.mask);
		struct fanotify_response answer = {.fd = one.fd, .response = i ? FAN_ALLOW : FAN_DENY};
		must(write(group, &answer, sizeof answer));
		close(one.fd);
		join(child);
	}
}

/* Of events that nobody has read there is at least the news that some are lost. */
static void unread(void) {
	int groups[] = {must(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY)), must(fanotify_init(FAN_REPORT_DFID_NAME, 0)), must(fanotify_init(FAN_REPORT_DIR_FID, 0))};
	const char *directory = path("directory"), *inside = path("directory/inside");
	must(mkdir(directory, 0700));
	touch(inside);
	for (int i = 0; i < 3; i++)
		must(fanotify_mark(groups[i], FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, directory));
	close(must(open(inside, O_RDONLY)));

	freeze_here();
	spoil(must(read(groups[0], buffer, sizeof buffer)););

	for (int i = 0; i < 3; i++) {
		must(fcntl(groups[i], F_SETFL, O_NONBLOCK));
		struct fanotify_event_metadata *one = (void *)buffer;
		ssize_t got = read(groups[i], buffer, sizeof buffer);
		expect(got >= (ssize_t)sizeof *one && (one->mask & (FAN_OPEN | FAN_Q_OVERFLOW)), "neither the event nor that it is lost");
		if (got > 0 && one->fd >= 0)
			close(one->fd);
		same("nothing else", -1, read(groups[i], buffer, sizeof buffer));
		close(must(open(inside, O_RDONLY)));
		same("another", true, read(groups[i], buffer, sizeof buffer) > 0 && one->mask == FAN_OPEN);
	}
}

int main(int count, char **arguments) {
	switch (count > 1 ? arguments[1][0] : 'd') {
	case 'd': descriptors(); break;
	case 'i': identities(); break;
	case 'u': unread(); break;
	default: permissions();
	}
	return report();
}

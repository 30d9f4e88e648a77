/* The file of a unix socket, a terminal, a FIFO or a device that is mounted elsewhere (mount --bind): who goes there meets the same. */
// arguments: stream | datagram | terminal | fifo | device | inside | copied
// capabilities: CAP_SYS_ADMIN CAP_MKNOD
#include "mounts.h"
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static struct mounts was, is;
static int listener = -1, client = -1, accepted = -1, ends[2];

static int at(int type, const char *path, bool to_bind) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int one = must(socket(AF_UNIX, type, 0));
	strcpy(address.sun_path, path);
	must((to_bind ? bind : connect)(one, (void *)&address, sizeof address));
	return one;
}

static void mount_at(const char *from, const char *to) {
	close(must(open(to, O_CREAT, 0600)));
	must(mount(from, to, NULL, MS_BIND, NULL));
}

static void reach(const char *path) {
	char text[10] = "";
	int other = at(SOCK_STREAM, path, false);
	must(write(other, "hello", 5));
	int one = must(accept(listener, NULL, NULL));
	expect(read(one, text, 9) == 5 && !strcmp(text, "hello"), "reads %s", text);
	close(one), close(other);
}

static void make(const char *what) {
	if (!strcmp(what, "stream") || !strcmp(what, "copied")) {
		listener = at(SOCK_STREAM, "/run/service", true);
		must(listen(listener, 5));
		mount_at("/run/service", "/tmp/service");
		must(mount(NULL, "/tmp/service", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
		client = at(SOCK_STREAM, "/tmp/service", false);
		accepted = must(accept(listener, NULL, NULL));
		must(write(client, "queued", 6));
	} else if (!strcmp(what, "datagram")) {
		listener = at(SOCK_DGRAM, "/run/service", true);
		mount_at("/run/service", "/tmp/service"), mount_at("/tmp/service", "/tmp/again");
		client = at(SOCK_DGRAM, "/tmp/again", false);
		must(write(client, "queued", 6));
	} else if (!strcmp(what, "terminal")) {
		listener = must(posix_openpt(O_RDWR | O_NOCTTY));
		must(grantpt(listener)), must(unlockpt(listener));
		mount_at(ptsname(listener), "/tmp/terminal");
	} else if (!strcmp(what, "fifo")) {
		must(mkfifo("/run/fifo", 0600));
		mount_at("/run/fifo", "/tmp/fifo");
		listener = must(open("/run/fifo", O_RDWR)), client = must(open("/tmp/fifo", O_RDWR));
		must(write(listener, "queued", 6));
	} else if (!strcmp(what, "device")) {
		must(mknod("/run/zero", S_IFCHR | 0666, makedev(1, 5)));
		mount_at("/run/zero", "/tmp/zero");
		client = must(open("/tmp/zero", O_RDWR));
	} else if (!strcmp(what, "inside")) { /* in a file system that comes with the image */
		must(mkdir("/tmp/fs", 0755)), must(mount("fs", "/tmp/fs", "tmpfs", 0, NULL));
		listener = at(SOCK_STREAM, "/tmp/fs/service", true);
		must(listen(listener, 5));
		mount_at("/tmp/fs/service", "/run/service");
	}
	if (!strcmp(what, "copied")) {
		int ready[2];
		char byte;
		must(pipe(ends)), must(pipe(ready));
		if (!must(fork())) {
			must(unshare(CLONE_NEWNS)), must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
			mount_at("/run/service", "/tmp/here");
			close(ends[1]);
			must(write(ready[1], "x", 1));
			if (read(ends[0], &byte, 1) == 1)
				close(at(SOCK_STREAM, "/tmp/service", false)), close(at(SOCK_STREAM, "/tmp/here", false));
			_exit(0);
		}
		must(read(ready[0], &byte, 1));
		close(ends[0]), close(ready[0]), close(ready[1]);
	}
}

static void verify(const char *what) {
	char text[10] = "";
	if (!strcmp(what, "stream") || !strcmp(what, "copied")) {
		expect(read(accepted, text, 9) == 6 && !strcmp(text, "queued"), "reads %s", text);
		reach("/tmp/service"), reach("/run/service");
	} else if (!strcmp(what, "datagram")) {
		expect(read(listener, text, 9) == 6 && !strcmp(text, "queued"), "reads %s", text);
		int other = at(SOCK_DGRAM, "/tmp/service", false);
		must(write(other, "more", 4)), must(write(client, "again", 5));
		expect(read(listener, text, 9) == 4 && read(listener, text, 9) == 5, "not both came");
	} else if (!strcmp(what, "terminal")) {
		int other = must(open("/tmp/terminal", O_RDWR | O_NOCTTY));
		must(write(other, "typed", 5));
		expect(read(listener, text, 9) == 5 && !strcmp(text, "typed"), "reads %s", text);
	} else if (!strcmp(what, "fifo")) {
		expect(read(client, text, 9) == 6 && !strcmp(text, "queued"), "reads %s", text);
	} else if (!strcmp(what, "device")) {
		text[0] = 'x';
		expect(read(client, text, 1) == 1 && !text[0], "reads %c", text[0]);
	} else if (!strcmp(what, "inside"))
		reach("/run/service");
	if (!strcmp(what, "copied")) {
		int status;
		must(write(ends[1], "x", 1));
		for (int i = 0; i < 2; i++)
			close(must(accept(listener, NULL, NULL)));
		expect(wait(&status) > 0 && status == 0, "ended with %#x", status);
	}
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "stream";
	umask(0022);
	make(what);
	read_mounts(&was);
	freeze_here();
	spoil(must(mount("spoiled", "/dev/shm", "tmpfs", 0, NULL)););
	read_mounts(&is);
	expect_same_mounts(&was, &is);
	verify(what);
	return report();
}

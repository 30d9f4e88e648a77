/* Files in flight in the queues of unix sockets: with parts of a stream, with packets, to a name; that nobody else has; in a queue that is itself in flight; a socket in its own queue. */
#include "wait.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/named"};

static void hand(int over, const char *text, int count, const int *files, bool to_name) {
	union { char bytes[CMSG_SPACE(4 * sizeof(int))]; struct cmsghdr head; } control = {0};
	struct iovec data = {(char *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	if (count) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.head), files, count * sizeof(int));
	}
	if (to_name) {
		message.msg_name = &name;
		message.msg_namelen = sizeof name;
	}
	must(sendmsg(over, &message, 0));
}

static void take(const char *what, int from, const char *expected, int count, int files[4]) {
	union { char bytes[CMSG_SPACE(4 * sizeof(int))]; struct cmsghdr head; } control = {0};
	char text[64] = "";
	struct iovec data = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t got = recvmsg(from, &message, MSG_DONTWAIT);
	expect(got >= 0 && !strcmp(text, expected), "%s: instead of %s comes %s (%zd)", what, expected, text, got);
	size_t length = message.msg_controllen ? control.head.cmsg_len : 0;
	same(what, count ? CMSG_LEN(count * sizeof(int)) : 0, length);
	for (int i = 0; i < 4; i++)
		files[i] = -1;
	if (length)
		memcpy(files, CMSG_DATA(&control.head), count * sizeof(int));
}

static bool one_file(int a, int b) { return syscall(SYS_kcmp, getpid(), getpid(), 0, a, b) == 0; }

int main(void) {
	int stream[2], packets[2], inner[2], self[2], ends[2], files[4];
	char text[16] = "";
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, self));
	must(pipe(ends));
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0644)), gone = must(open(in_work("gone"), O_RDWR | O_CREAT, 0600));
	must(write(file, "0123456789", 10));
	must(lseek(file, 3, SEEK_SET));
	must(write(gone, "gone", 4));
	must(unlink(in_work("gone")));
	int named = must(socket(AF_UNIX, SOCK_DGRAM, 0)), sender = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(bind(named, (struct sockaddr *)&name, sizeof name));

	hand(stream[0], "before ", 0, NULL, false);
	hand(stream[0], "the pipe", 1, &ends[1], false);
	hand(stream[0], "then two", 2, (int[]){file, file}, false);
	hand(stream[0], "after", 0, NULL, false);
	hand(packets[0], "two", 2, (int[]){gone, stream[0]}, false);
	hand(packets[0], "none", 0, NULL, false);
	hand(packets[0], "", 0, NULL, false);
	hand(packets[0], "", 1, &file, false);
	hand(inner[0], "deep", 1, &ends[1], false);
	hand(packets[0], "inner", 1, &inner[1], false);
	hand(self[0], "itself", 1, &self[0], false);
	hand(sender, "to a name", 1, &file, true);
	close(ends[1]);
	close(gone);
	close(inner[0]);
	close(inner[1]);
	close(self[0]);
	close(sender);

	freeze_here();
	spoil(must(lseek(file, 0, SEEK_SET)););

	take("the pipe", stream[1], "before the pipe", 1, files);
	must(write(files[0], "through", 7));
	same("reading from it", 7, read(ends[0], text, 7));
	close(files[0]);
	take("the file", stream[1], "then two", 2, files);
	expect(one_file(files[0], file) && one_file(files[1], file), "it is another one");
	same("its position", 3, lseek(files[0], 0, SEEK_CUR));
	take("the rest", stream[1], "after", 0, files);
	take("a packet", packets[1], "two", 2, files);
	same("reading what was removed", 4, pread(files[0], text, 8, 0));
	expect(one_file(files[1], stream[0]), "the socket is another one");
	take("another packet", packets[1], "none", 0, files);
	take("an empty one", packets[1], "", 0, files);
	take("an empty one with a file", packets[1], "", 1, files);
	expect(one_file(files[0], file), "the empty packet's file is another one");
	take("a socket", packets[1], "inner", 1, files);
	int found = files[0];
	take("from its queue", found, "deep", 1, files);
	must(write(files[0], "deep", 4));
	close(files[0]);
	same("reading what came from there", 4, read(ends[0], text, 4));
	take("the end of it", found, "", 0, files);
	same("the pipe without writers", 0, read(ends[0], text, 4));
	take("from its own queue", self[1], "itself", 1, files);
	must(write(files[0], "back", 4));
	same("reading what came back", 4, read(self[1], text, 4));
	take("by name", named, "to a name", 1, files);
	expect(one_file(files[0], file), "what came by name is another one");
	return report();
}

/* Who sent what waits at a unix socket, as readers with SO_PASSCRED, or SO_PASSPIDFD, are told (SCM_CREDENTIALS): several processes and users, one of
 * which has ended; streams, packets and datagrams. */
// arguments: stream | seqpacket | dgram | named
// never: restored_twice
// capabilities: CAP_SETUID CAP_SETGID
#include "wait.h"
#include <sys/socket.h>
#include <sys/un.h>

static int ends[2];
static pid_t writer;
static struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/letters"};

static void send_as(int by, const char *text) {
	must(setresgid(by * 100, by * 100, by * 100));
	must(setresuid(by * 1000, by * 1000, by * 1000));
	must(send(by < 0 ? -1 : ends[1], text, 4, 0));
}

static void reads(const char *wanted, pid_t pid, int by) {
	char text[64] = "", beside[256];
	struct iovec vector = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = beside, .msg_controllen = sizeof beside};
	ssize_t got = recvmsg(ends[0], &message, MSG_DONTWAIT);
	expect(got == 4 && !strcmp(text, wanted), "%s: %zd bytes, %s", wanted, got, text);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_CREDENTIALS) {
		differs("%s comes without its author", wanted);
		return;
	}
	struct ucred author;
	memcpy(&author, CMSG_DATA(header), sizeof author);
	expect((!pid || author.pid == pid) && author.uid == (uid_t)by * 1000 && author.gid == (gid_t)by * 100, "%s: process %d, user %d, group %d", wanted, author.pid, author.uid, author.gid);
}

static int has_author(int socket) {
	char text[8], beside[256];
	struct iovec vector = {text, sizeof text};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = beside, .msg_controllen = sizeof beside};
	must(recvmsg(socket, &message, MSG_DONTWAIT));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	return header && header->cmsg_type == 4; /* SCM_PIDFD */
}

int main(__attribute__((unused)) int count, char **arguments) {
	int kind = arguments[1][0] == 's' && arguments[1][1] == 't' ? SOCK_STREAM : arguments[1][0] == 's' ? SOCK_SEQPACKET : SOCK_DGRAM;
	if (arguments[1][0] == 'n') {
		ends[0] = must(socket(AF_UNIX, SOCK_DGRAM, 0));
		must(bind(ends[0], (void *)&name, sizeof name));
		ends[1] = must(socket(AF_UNIX, SOCK_DGRAM, 0));
		must(connect(ends[1], (void *)&name, sizeof name));
	} else
		must(socketpair(AF_UNIX, kind, 0, ends));
	must(setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	must(send(ends[1], "root", 4, 0));
	if ((writer = must(fork())) == 0) {
		send_as(1, "one.");
		say("sent");
		wait_for("check");
		_exit(0);
	}
	wait_for("sent");
	pid_t ended = must(fork());
	if (ended == 0) {
		send_as(2, "two.");
		_exit(0);
	}
	join(ended);
	must(send(ends[1], "more", 4, 0));
	int by_pidfd[2];
	must(socketpair(AF_UNIX, kind, 0, by_pidfd));
	bool can = setsockopt(by_pidfd[0], SOL_SOCKET, 76 /* SO_PASSPIDFD */, &(int){1}, sizeof(int)) == 0; /* Linux 6.5 */
	must(send(by_pidfd[1], "hello", 5, 0));
	freeze_here();
	spoil(char text[8]; must(recv(ends[0], text, 4, 0)););

	reads("root", 1, 0);
	reads("one.", writer, 1);
	reads("two.", 0, 2);
	reads("more", 1, 0);
	must(send(ends[1], "last", 4, 0));
	reads("last", 1, 0);
	same("one by its pidfd", can, has_author(by_pidfd[0]));
	join(writer);
	return report();
}

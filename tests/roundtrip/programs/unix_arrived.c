/* Clients that wait for being accepted and have sent something, or are closed since: their order, what they sent, and by whom; and
 * nothing has changed for the clients. */
// arguments: stream path | packets path | stream abstract | packets abstract
// capabilities: CAP_SETUID CAP_SETGID
#include "unix_names.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

const char *const names[] = {"/work/server", "@server", "@fourth"};
enum { CLIENTS = 10, LOOKED_AT = 50, COPY = 60 };
static int type, where, server, clients[CLIENTS], carried[2], epoll;
static pid_t living, ended;
static bool stream;
static char pattern[1000];

static int client(int how) {
	int fd = must(socket(AF_UNIX, type | how, 0));
	tie(fd, where);
	return fd;
}

static void put(int fd, const char *text) { must(send(fd, text, strlen(text), MSG_NOSIGNAL)); }

static void put_with(int fd, const char *text, int file) {
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof file)]; } beside = {.header = {.cmsg_len = CMSG_LEN(sizeof file), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	memcpy(CMSG_DATA(&beside.header), &file, sizeof file);
	struct iovec vector = {(void *)text, strlen(text)};
	must(sendmsg(fd, &(struct msghdr){.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &beside, .msg_controllen = sizeof beside}, MSG_NOSIGNAL));
}

/* Get a message, with who has sent it, and a file if one comes with it. */
static void is_got(int fd, const char *wanted, struct ucred *author, int *file) {
	char text[64] = "", room[256];
	struct iovec vector = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
	ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
	expect(got == (ssize_t)strlen(wanted) && !strcmp(text, wanted), "got %zd, \"%s\" instead of \"%s\"", got, text, wanted);
	for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); got >= 0 && one; one = CMSG_NXTHDR(&message, one))
		if (one->cmsg_type == SCM_RIGHTS && file)
			memcpy(file, CMSG_DATA(one), sizeof *file);
		else if (one->cmsg_type == SCM_CREDENTIALS && author)
			memcpy(author, CMSG_DATA(one), sizeof *author);
}

static void is_from(const char *what, struct ucred found, pid_t pid, uid_t user) {
	expect((!pid || found.pid == pid) && found.uid == user && found.gid == user, "%s: process %d, user %d, group %d", what, found.pid, found.uid, found.gid);
}

static pid_t forked(int number, bool ends) {
	pid_t child = must(fork());
	if (child)
		return child;
	must(setresgid(1000, 1000, 1000));
	must(setresuid(1000, 1000, 1000));
	for (int i = 0; i < number && i < 7; i++)
		must(close(clients[i]));
	int fd = client(0);
	put(fd, "user's");
	if (ends)
		_exit(0);
	say(number == 7 ? "seven" : "other");
	wait_for("heard");
	put(fd, "more");
	wait_for("answered");
	is_got(fd, "answer", NULL, NULL);
	_exit(0);
}

int main(int count, char **arguments) {
	stream = count < 2 || !strcmp(arguments[1], "stream");
	type = stream ? SOCK_STREAM : SOCK_SEQPACKET;
	where = count > 2 && !strcmp(arguments[2], "abstract");
	must(chmod(in_work(""), 0777));
	server = named(type, where);
	if (!where)
		must(chmod(names[0], 0777));
	must(listen(server, CLIENTS));
	must(pipe(carried));
	must(dup2(epoll = must(epoll_create1(0)), 40));
	for (int i = 0; i < CLIENTS; i++) {
		if (i == 7) {
			living = forked(7, false);
			wait_for("seven");
			continue;
		}
		if (i == 8) {
			ended = forked(8, true);
			join(ended);
			continue;
		}
		clients[i] = client(i == 9 ? SOCK_NONBLOCK : 0);
	}
	put(clients[1], "one ");
	put(clients[1], "two");
	put(clients[2], "and no more");
	must(shutdown(clients[2], SHUT_WR));
	put(clients[3], "last words");
	must(close(clients[3]));
	struct sockaddr_un name;
	socklen_t size = address(2, &name);
	must(bind(clients[4], (void *)&name, size));
	must(setsockopt(clients[4], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	must(setsockopt(clients[4], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_sec = 7}, sizeof(struct timeval)));
	put(clients[4], "named");
	put_with(clients[5], "a pipe", carried[0]);
	put(clients[5], "behind it");
	int memory = must(memfd_create("sent", 0)), counter = must(eventfd(7, 0));
	must(write(memory, "memory", 6));
	put_with(clients[5], "memory", memory);
	put_with(clients[5], "counter", counter);
	must(close(memory) | close(counter)); /* only in flight from now on */
	must(close(clients[6]));
	long large = 0;
	for (ssize_t sent; (sent = send(clients[9], pattern, sizeof pattern, MSG_NOSIGNAL)) > 0;)
		large += sent;
	/* Under another number, close-on-exec, watched, in another process's table. */
	must(dup3(clients[1], COPY, O_CLOEXEC));
	must(dup2(clients[1], LOOKED_AT));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, LOOKED_AT, &(struct epoll_event){.events = EPOLLIN, .data.u32 = 1234}));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, clients[1], &(struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u32 = 1235}));
	pid_t heir = must(fork());
	if (heir == 0) {
		wait_for("inherited");
		put(clients[1], " three");
		_exit(0);
	}
	must(close(LOOKED_AT));

	freeze_here();
	spoil(close(must(accept(server, NULL, NULL))););

	same("descriptor flags", FD_CLOEXEC, fcntl(COPY, F_GETFD));
	same("of the other", 0, fcntl(clients[1], F_GETFD));
	same("status flags", O_RDWR | O_NONBLOCK, fcntl(clients[9], F_GETFL));
	same("a full one", -1, send(clients[9], pattern, sizeof pattern, MSG_NOSIGNAL));
	struct timeval limit = {0};
	size = sizeof limit;
	must(getsockopt(clients[4], SOL_SOCKET, SO_RCVTIMEO, &limit, &size));
	same("SO_RCVTIMEO", 7, limit.tv_sec);
	is_named("the fourth", clients[4], 2, false);
	is_named("the first", clients[0], -1, false);
	is_named("its peer", clients[0], where, true);
	struct ucred peer = {0};
	size = sizeof peer;
	must(getsockopt(clients[0], SOL_SOCKET, SO_PEERCRED, &peer, &size));
	is_from("the server", peer, 1, 0);
	say("inherited");
	join(heir);

	int servers[CLIENTS];
	must(fcntl(server, F_SETFL, O_NONBLOCK));
	for (int i = 0; i < CLIENTS; i++) {
		if ((servers[i] = accept(server, NULL, NULL)) < 0) {
			differs("number %d has gone", i);
			return report();
		}
		must(getsockopt(servers[i], SOL_SOCKET, SO_PEERCRED, &peer, &size));
		is_from("who has connected", peer, i == 7 ? living : i == 8 ? 0 : 1, i == 7 || i == 8 ? 1000 : 0);
		must(setsockopt(servers[i], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	}
	same("nobody else", -1, accept(server, NULL, NULL));
	struct ucred author = {0};
	int file = -1;
	put(clients[0], "first");
	is_got(servers[0], "first", NULL, NULL);
	if (!stream) {
		is_got(servers[1], "one ", NULL, NULL);
		is_got(servers[1], "two", &author, NULL);
		is_from("who has sent", author, 1, 0);
		is_got(servers[1], " three", &author, NULL);
		is_from("the heir", author, heir, 0);
	} else {
		is_got(servers[1], "one two", NULL, NULL);
		is_got(servers[1], " three", &author, NULL);
		is_from("the heir", author, heir, 0);
	}
	is_got(servers[2], "and no more", NULL, NULL);
	is_got(servers[2], "", NULL, NULL);
	put(servers[2], "back");
	is_got(clients[2], "back", NULL, NULL);
	is_got(servers[3], "last words", NULL, NULL);
	is_got(servers[3], "", NULL, NULL);
	is_got(servers[4], "named", NULL, NULL);
	is_named("the fourth at its peer's", servers[4], 2, true);
	is_got(servers[5], "a pipe", NULL, &file);
	int received = file;
	is_got(servers[5], stream ? "behind itmemory" : "behind it", NULL, &file);
	if (!stream)
		is_got(servers[5], "memory", NULL, &file);
	char sent[8] = "";
	expect(pread(file, sent, 7, 0) == 6 && !strcmp(sent, "memory"), "the memory holds %s", sent);
	is_got(servers[5], "counter", NULL, &file);
	uint64_t value = 0;
	expect(read(file, &value, 8) == 8 && value == 7, "the counter stands at %ld", (long)value);
	file = received;
	char byte = 0;
	must(write(carried[1], "p", 1));
	expect(file >= 0 && read(file, &byte, 1) == 1 && byte == 'p', "no pipe has come");
	is_got(servers[6], "", NULL, NULL);
	is_got(servers[8], "user's", &author, NULL);
	is_from("who has ended", author, 0, 1000);
	is_got(servers[8], "", NULL, NULL);
	long found = 0;
	for (ssize_t got; (got = recv(servers[9], (char[1000]){0}, 1000, MSG_DONTWAIT)) > 0;)
		found += got;
	same("what the full one had sent", large, found);
	same("it takes more", sizeof pattern, send(clients[9], pattern, sizeof pattern, MSG_NOSIGNAL));

	put(servers[1], "event");
	struct epoll_event events[4];
	same("events", 2, epoll_wait(epoll, events, 4, 0));
	same("their data", 1234 + 1235, events[0].data.u32 + events[1].data.u32);
	is_got(COPY, "event", NULL, NULL);

	is_got(servers[7], "user's", &author, NULL);
	is_from("the living one", author, living, 1000);
	say("heard");
	for (int i = 0; i < 1000 && recv(servers[7], &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 1; i++)
		usleep(5000);
	is_got(servers[7], "more", NULL, NULL);
	put(servers[7], "answer");
	say("answered");
	join(living);
	return report();
}

/* Sockets of all kinds: whose they are, and who may use them; a port that only sockets of one user share. */
// capabilities: CAP_NET_RAW
#include "wait.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { COUNT = 12, USER = 1000, GROUP = 1001, OTHER = 77 };
static struct sockaddr_in address = {.sin_family = AF_INET};

static void be(uid_t user, gid_t group) {
	must(seteuid(0)), must(setegid(group)), must(seteuid(user));
}

/* Make a socket that shares a port, the same for all. */
static int sharing(int type) {
	int fd = must(socket(AF_INET, type, 0));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK), address.sin_port = htons(type == SOCK_STREAM ? 5001 : 5002);
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int)));
	expect(bind(fd, (void *)&address, sizeof address) == 0, "no more sockets can share port %d: %s", ntohs(address.sin_port), strerror(errno));
	if (type == SOCK_STREAM)
		must(listen(fd, 5));
	return fd;
}

int main(void) {
	int fd[COUNT], tie[2];
	struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0owned"};
	struct stat before[COUNT], after;
	int raw = must(socket(AF_PACKET, SOCK_RAW, 0)), carrier[2];
	be(USER, GROUP);
	fd[0] = sharing(SOCK_STREAM), fd[1] = sharing(SOCK_DGRAM);
	fd[2] = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(fd[2], (void *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(5001), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, sizeof address));
	be(USER, OTHER);
	fd[3] = must(accept(fd[0], NULL, NULL));
	be(OTHER, OTHER);
	fd[4] = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(fd[4], (void *)&name, sizeof name)), must(listen(fd[4], 1));
	fd[5] = must(socket(AF_INET6, SOCK_STREAM, 0));
	fd[6] = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, tie));
	fd[7] = tie[0], fd[8] = tie[1];
	be(0, 0);
	fd[9] = must(socket(AF_UNIX, SOCK_STREAM, 0));
	fd[10] = raw;
	be(OTHER, OTHER); /* whom the listener is shown, not whose the socket is */
	must(connect(fd[9], (void *)&name, sizeof name));
	be(0, 0);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
	fd[11] = carrier[1];
	must(fchmod(fd[5], 0640)), must(fchmod(fd[7], 0)), must(fchmod(fd[10], 0111)), must(fchown(fd[10], USER, OTHER));
	must(fchown(fd[11], 0, GROUP)), must(fchmod(fd[11], 01777));
	for (int i = 0; i < COUNT; i++)
		must(fstat(fd[i], &before[i]));
	be(USER, GROUP);

	freeze_here();
	spoil(be(0, 0); must(fchmod(fd[3], 0)); must(fchown(fd[4], 0, 0)); be(USER, GROUP););

	for (int i = 0; i < COUNT; i++) {
		must(fstat(fd[i], &after));
		expect(before[i].st_uid == after.st_uid && before[i].st_gid == after.st_gid, "socket %d was of %u:%u, is of %u:%u",
			i, before[i].st_uid, before[i].st_gid, after.st_uid, after.st_gid);
		expect(before[i].st_mode == after.st_mode, "mode of socket %d: was %o, is %o", i, before[i].st_mode, after.st_mode);
	}
	close(sharing(SOCK_STREAM)), close(sharing(SOCK_DGRAM));
	return report();
}

/* Calls that are half done: they go on, and tell of all that they have done, as if nobody had looked at them. */
// arguments: interrupted | write | writev | send | sendmsg | recv | recvmsg | tty | zero | keys
#include "waits.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>

enum { SIZE = 400000, FIRST = 1000 };
static int full[2], sockets[2], waiting[2], typing[2], master, terminal;
static char bytes[SIZE], parts[3][100000], got[SIZE];
static uint64_t *zeros;

/* Whether bytes from a place on are those that the callers sent. */
static void check(const char *what, const char *memory, long from, long length) {
	for (long i = 0; i < length; i++)
		if (memory[i] != bytes[from + i]) {
			differs("%s: byte %ld is another", what, from + i);
			return;
		}
}

/* Take all that comes from a descriptor, slowly first. */
static void drain(const char *what, int from, long size) {
	struct pollfd ready = {from, POLLIN, 0};
	long taken = 0;
	for (int length = FIRST; poll(&ready, 1, 60000) > 0; length = 50000) {
		long some = must(read(from, got, length));
		check(what, got, taken, some);
		if ((taken += some) >= size)
			break;
	}
	same(what, size, taken);
}

static struct iovec *vectors(char *from) {
	static struct iovec three[3];
	for (int i = 0; i < 3; i++)
		three[i] = (struct iovec){from + i * 100000, 100000};
	return three;
}

static long write_(void) { return RAW(SYS_write, full[1], bytes, SIZE); }
static volatile int told;
static void handler(int number) { told = number; }
static long interrupted(void) {
	must(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	long length = write_();
	same("a signal", SIGUSR1, told);
	same("what fits", must(fcntl(full[1], F_GETPIPE_SZ)), length);
	return length < 0 ? length : 0;
}
static long writev_(void) { return RAW(SYS_writev, full[1], vectors(bytes), 3); }
static long send_(void) { return RAW(SYS_sendto, sockets[0], bytes, SIZE, 0, NULL, 0); }
static long sendmsg_(void) {
	/* a descriptor goes with the first bytes */
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct msghdr message = {.msg_iov = vectors(bytes), .msg_iovlen = 3, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	*rights = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(rights), &full[0], sizeof(int));
	return RAW(SYS_sendmsg, sockets[0], &message, 0);
}
static long recv_(void) {
	long length = RAW(SYS_recvfrom, waiting[0], got, 90000, MSG_WAITALL, NULL, NULL);
	check("recv", got, 0, 90000);
	return length;
}
static long recvmsg_(void) {
	struct msghdr message = {.msg_iov = vectors(parts[0]), .msg_iovlen = 2};
	long length = RAW(SYS_recvmsg, waiting[0], &message, MSG_WAITALL);
	check("recvmsg", parts[0], 0, 90000);
	return length;
}
static long tty(void) { return RAW(SYS_write, terminal, bytes, 200000); }
static long keys(void) {
	/* as many as the terminal waits for, which is less than there is room for */
	long length = RAW(SYS_read, typing[0], got, 100);
	check("keys", got, 0, 10);
	return length;
}
static long zero(void) {
	/* It takes a while, and is most likely stopped on its way. */
	int fd = must(open("/dev/zero", O_RDONLY));
	long length = 0;
	while (length >= 0 && access(in_work("check"), F_OK) != 0)
		if ((length = RAW(SYS_read, fd, zeros, 64l << 20)) != 64l << 20)
			return length;
	return length;
}

static void wake_write(__attribute__((unused)) pid_t child) { drain("write", full[0], SIZE); }
static void wake_interrupted(pid_t child) { must(kill(child, SIGUSR1)); }
static void wake_writev(__attribute__((unused)) pid_t child) { drain("writev", full[0], 300000); }
static void wake_send(__attribute__((unused)) pid_t child) { drain("send", sockets[1], SIZE); }
static void wake_sendmsg(__attribute__((unused)) pid_t child) { drain("sendmsg", sockets[1], 300000); }
static void wake_recv(__attribute__((unused)) pid_t child) { must(write(waiting[1], bytes + 40000, 50000)); }
static void wake_recvmsg(__attribute__((unused)) pid_t child) { must(write(waiting[1], bytes + 40000, 160000)); }
static void wake_keys(__attribute__((unused)) pid_t child) { must(write(typing[1], bytes + 4, 6)); }
static void wake_tty(__attribute__((unused)) pid_t child) { drain("tty", master, 200000); }

static const struct wait waits[] = {
	{"interrupted", interrupted, 0, wake_interrupted}, {"write", write_, SIZE, wake_write}, {"writev", writev_, 300000, wake_writev}, {"send", send_, SIZE, wake_send},
	{"sendmsg", sendmsg_, 300000, wake_sendmsg}, {"recv", recv_, 90000, wake_recv}, {"recvmsg", recvmsg_, 200000, wake_recvmsg},
	{"tty", tty, 200000, wake_tty}, {"zero", zero, 64l << 20, NULL}, {"keys", keys, 10, wake_keys},
};

static int raw_terminal(int *master_end, int least) {
	int end = *master_end = must(posix_openpt(O_RDWR | O_NOCTTY));
	must(grantpt(end));
	must(unlockpt(end));
	int other = must(open(ptsname(end), O_RDWR | O_NOCTTY));
	struct termios raw;
	must(tcgetattr(other, &raw));
	cfmakeraw(&raw);
	raw.c_cc[VMIN] = least;
	must(tcsetattr(other, TCSANOW, &raw));
	return other;
}

int main(int count, char **arguments) {
	fill(bytes, SIZE, 1);
	must(pipe(full));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, waiting));
	must(write(waiting[1], bytes, 40000));
	terminal = raw_terminal(&master, 1);
	typing[0] = raw_terminal(&typing[1], 10);
	must(write(typing[1], bytes, 4));
	zeros = must(mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	return all_of(WAITS(waits), 0);
}

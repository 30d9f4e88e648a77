/* What a terminal's master in packet mode has not been told yet (TIOCPKT): flushes, stops, flow control, other settings. */
// arguments: flushed | read | stopped | started | obeys | disobeys | settings
#include "wait.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

#ifndef EXTPROC
#define EXTPROC 0200000
#endif

static const struct { const char *name; int news; } cases[] = {
	{"flushed", TIOCPKT_FLUSHREAD | TIOCPKT_FLUSHWRITE}, {"read", TIOCPKT_FLUSHREAD}, {"stopped", TIOCPKT_STOP},
	{"started", TIOCPKT_START}, {"obeys", TIOCPKT_DOSTOP}, {"disobeys", TIOCPKT_NOSTOP}, {"settings", TIOCPKT_IOCTL},
};

static int master, terminal;

static void set(tcflag_t in, tcflag_t local) {
	struct termios settings;
	must(tcgetattr(terminal, &settings));
	cfmakeraw(&settings);
	settings.c_iflag |= in;
	settings.c_lflag |= local;
	must(tcsetattr(terminal, TCSANOW, &settings));
}

int main(int count, char **arguments) {
	char got[64];
	int packets = 1, at = 0;
	must(count > 1 ? 0 : -1);
	while (strcmp(cases[at].name, arguments[1]))
		at++;
	int news = cases[at].news;
	master = must(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	must(grantpt(master));
	must(unlockpt(master));
	terminal = must(open(ptsname(master), O_RDWR | O_NOCTTY));
	set(news == TIOCPKT_NOSTOP ? IXON : 0, 0);
	must(ioctl(master, TIOCPKT, &packets));
	if (news & TIOCPKT_FLUSHREAD)
		must(tcflush(terminal, news & TIOCPKT_FLUSHWRITE ? TCIOFLUSH : TCIFLUSH));
	must(write(terminal, "told", 4));
	must(write(master, "typed", 5));
	if (news & (TIOCPKT_STOP | TIOCPKT_START))
		must(tcflow(terminal, TCOOFF));
	if (news & TIOCPKT_START)
		must(tcflow(terminal, TCOON));
	if (news & (TIOCPKT_DOSTOP | TIOCPKT_NOSTOP))
		set(news == TIOCPKT_DOSTOP ? IXON : 0, 0);
	if (news & TIOCPKT_IOCTL)
		set(0, EXTPROC);
	struct termios was = {0}, is = {0};
	must(tcgetattr(terminal, &was));
	freeze_here();
	struct pollfd ready = {master, POLLIN | POLLPRI, 0};
	spoil(must(read(master, got, sizeof got)););
	must(poll(&ready, 1, 0));
	same("urgent", POLLPRI, ready.revents & POLLPRI);
	same("news", 1, read(master, got, sizeof got));
	same("which", news, (unsigned char)got[0]);
	same("data", 5, read(master, got, sizeof got));
	expect(!memcmp(got, "\0told", 5), "other data");
	same("typed", 5, read(terminal, got, sizeof got));
	must(poll(&ready, 1, 0));
	same("nothing more", 0, ready.revents & (POLLPRI | POLLIN));
	must(tcgetattr(terminal, &is));
	expect(!memcmp(&was, &is, sizeof was), "other settings");
	return report();
}

/* Pseudoterminals with both ends inside: settings, size, owner, what is queued both ways, stops, locks, a session with a foreground group, hang-ups. */
// capabilities: CAP_SYS_ADMIN
#include "wait.h"
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

static int events(int file) {
	struct pollfd one = {.fd = file, .events = POLLIN};
	return poll(&one, 1, 0) > 0 ? one.revents : 0;
}

static void reads(const char *what, int file, const char *expected) {
	char text[256] = "";
	ssize_t got = read(file, text, sizeof text - 1);
	expect(got == (ssize_t)strlen(expected) && !memcmp(text, expected, strlen(expected)), "%s: instead of %s, %zd bytes: %s", what, expected, got, text);
}

int main(void) {
	struct termios settings, found;
	struct winsize size = {.ws_row = 33, .ws_col = 99};
	struct stat node;
	char name[64];
	int extra = must(posix_openpt(O_RDWR | O_NOCTTY)), master, terminal, raw_master, raw, dead_master, dead, lonely, hung;
	must(openpty(&master, &terminal, name, NULL, &size));
	int again = must(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
	must(fchown(terminal, 1234, 5));
	must(fchmod(terminal, 0622));
	must(tcgetattr(terminal, &settings));
	settings.c_cc[VINTR] = 7;
	settings.c_lflag &= ~ECHO;
	must(tcsetattr(terminal, TCSANOW, &settings));
	must(tcgetattr(terminal, &settings));
	must(write(terminal, "a line\n", 7));
	must(write(master, "typed\rand an end\4not yet", 24));
	must(openpty(&raw_master, &raw, NULL, NULL, NULL));
	cfmakeraw(&found);
	must(tcgetattr(raw, &found));
	cfmakeraw(&found);
	must(tcsetattr(raw, TCSANOW, &found));
	int packets = 1;
	must(ioctl(raw_master, TIOCPKT, &packets));
	must(write(raw, "raw\n", 4));
	must(write(raw_master, "\3\4\r", 3));
	must(openpty(&dead_master, &dead, NULL, NULL, NULL));
	close(dead);
	int idle_master, idle, other;
	must(openpty(&idle_master, &idle, NULL, NULL, NULL));
	must(openpty(&hung, &lonely, NULL, NULL, NULL));
	close(hung);
	close(extra); /* the next one has its number */
	int stopped_master, stopped;
	must(openpty(&stopped_master, &stopped, NULL, NULL, NULL));
	must(fcntl(stopped, F_SETFL, O_NONBLOCK));
	must(write(stopped, "before", 6));
	must(write(stopped_master, "\23", 1));
	while (write(stopped, "x", 1) == 1)
		;

	struct termios lock = {.c_lflag = ECHO};
	must(fcntl(idle, F_SETFL, O_NONBLOCK));
	must(write(idle_master, "\23", 1));
	while (write(idle, "", 0) == 0 && write(idle, "x", 1) == 1)
		must(read(idle_master, &other, 1)); /* until the stop has come, with nothing queued */
	must(ioctl(idle, TIOCEXCL));
	must(ioctl(idle, TIOCSLCKTRMIOS, &lock));

	pid_t leader = must(fork());
	if (leader == 0) {
		must(setsid());
		pid_t early = must(fork());
		if (early == 0) {
			wait_for("check");
			expect(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "who was there before the terminal has it");
			wait_for("done");
			_exit(0);
		}
		must(ioctl(raw, TIOCSCTTY, 0));
		pid_t job = must(fork());
		if (job == 0) {
			must(setpgid(0, 0));
			wait_for("check");
			int own = open("/dev/tty", O_RDWR);
			expect(own >= 0, "who was born with the terminal has it no longer");
			same("the foreground group, by itself", getpid(), tcgetpgrp(own));
			wait_for("done");
			_exit(0);
		}
		setpgid(job, job);
		must(tcsetpgrp(raw, job));
		int device = must(open("/dev/tty", O_RDWR | O_CLOEXEC));
		say("session");
		wait_for("check");
		same("the foreground group", job, tcgetpgrp(raw));
		same("by /dev/tty", job, tcgetpgrp(device));
		same("the session", getpid(), tcgetsid(raw));
		int anew = must(open("/dev/tty", O_RDWR));
		same("by another open", job, tcgetpgrp(anew));
		say("looked");
		join(job), join(early);
		_exit(0);
	}
	wait_for("session");

	freeze_here();
	spoil(must(tcflush(terminal, TCIFLUSH)););

	wait_for("looked");
	must(tcgetattr(terminal, &found));
	expect(found.c_lflag == settings.c_lflag && found.c_iflag == settings.c_iflag && found.c_oflag == settings.c_oflag
		&& found.c_cflag == settings.c_cflag && !memcmp(found.c_cc, settings.c_cc, 17), "the settings have changed");
	must(ioctl(master, TIOCGWINSZ, &size));
	same("columns", 99, size.ws_col);
	must(fstat(terminal, &node));
	same("owner", 1234, node.st_uid);
	same("mode", S_IFCHR | 0622, node.st_mode);
	expect(!strcmp(ptsname(master), name), "the name has changed to %s", ptsname(master));
	reads("what was written", master, "a line\r\n");
	reads("a typed line", again, "typed\n");
	reads("one that was ended", again, "and an end");
	expect(read(again, name, sizeof name) == -1 && errno == EAGAIN, "an unfinished line can be read");
	must(write(master, " done\r", 6));
	reads("it is finished", terminal, "not yet done\n");
	must(write(terminal, "x", 1));
	reads("no echo", master, "x");
	same("a packet", 5, read(raw_master, name, sizeof name));
	expect(!memcmp(name, "\0raw\n", 5), "in raw mode, it holds %.4s", name + 1);
	reads("raw input", raw, "\3\4\r");
	expect(events(dead_master) & POLLHUP, "the other end is open again");
	expect(read(dead_master, name, sizeof name) == -1 && errno == EIO, "there is somebody at the other end");
	same("reading from a terminal that is hung up", 0, read(lonely, name, sizeof name));
	expect(write(lonely, "x", 1) == -1 && errno == EIO, "one can write to it");
	expect(write(stopped, "x", 1) == -1 && errno == EAGAIN, "output goes on, though it was stopped");
	expect(read(stopped_master, name, 6) == 6 && !memcmp(name, "before", 6), "before that, %.6s was written", name);
	must(write(stopped_master, "\21", 1));
	must(fcntl(stopped, F_SETFL, 0));
	must(write(stopped, "after", 5));
	expect(events(stopped_master) & POLLIN, "nothing comes when it goes on");
	expect(write(idle, "x", 1) == -1 && errno == EAGAIN, "output goes on, though it was stopped with nothing queued");
	must(write(idle_master, "\21", 1));
	must(fcntl(idle, F_SETFL, 0));
	must(write(idle, "y", 1));
	reads("what is written when it goes on", idle_master, "y");
	must(ioctl(idle, TIOCGEXCL, &other));
	same("whether it is exclusive", 1, other);
	must(tcgetattr(idle, &found));
	found.c_lflag ^= ECHO;
	must(ioctl(idle, TCSETS, &found));
	must(tcgetattr(idle, &settings));
	expect(settings.c_lflag & ECHO, "a locked setting could be changed");
	int last = must(posix_openpt(O_RDWR | O_NOCTTY));
	unsigned number = 99;
	must(ioctl(last, TIOCGPTN, &number));
	same("the number of the next one", 6, number);
	say("done");
	join(leader);
	return report();
}

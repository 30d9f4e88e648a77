/* A login inside: whose it is (/proc/PID/loginuid), for it and its children, and how nice its session is (/proc/PID/autogroup). */
#include "wait.h"

static void told(const char *name, char *text) {
	char path[64];
	snprintf(path, sizeof path, "/proc/self/%s", name);
	int file = must(open(path, O_RDONLY));
	ssize_t got = must(read(file, text, 63));
	text[got] = 0;
	close(file);
}

static void tell(const char *name, const char *text) {
	char path[64];
	snprintf(path, sizeof path, "/proc/self/%s", name);
	int file = must(open(path, O_WRONLY));
	while (write(file, text, strlen(text)) < 0) { /* of autogroups few per second may be changed, by anyone */
		expect(errno == EAGAIN, "%s: %s", name, strerror(errno));
		usleep(10000);
	}
	close(file);
}

static void checks(const char *who, const char *login) {
	char text[64];
	wait_for("check");
	spoil(if (*login == '1') tell("autogroup", "3"););
	told("loginuid", text);
	expect(!strcmp(text, login), "%s has loginuid %s", who, text);
	told("autogroup", text);
	expect((strstr(text, "nice 7") != NULL) == (*login == '1'), "%s: autogroup %s", who, text);
}

int main(void) {
	char first[64];
	told("loginuid", first);
	pid_t login = must(fork());
	if (login == 0) {
		must(setsid());
		tell("loginuid", "1234");
		tell("autogroup", "7");
		pid_t child = must(fork());
		if (child == 0) {
			checks("a child", "1234");
			_exit(0);
		}
		say("set");
		checks("a login", "1234");
		join(child);
		_exit(0);
	}
	wait_for("set");
	freeze_here();
	checks("the first process", first);
	join(login);
	return report();
}

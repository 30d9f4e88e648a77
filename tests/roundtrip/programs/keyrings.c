/* Keys of type user in the container's keyring, found by all; and in one that a login has joined, with its children. */
#include "wait.h"
#include <linux/keyctl.h>

static long keyctl(int what, long one, long two, long three) { return syscall(SYS_keyctl, what, one, two, three, 0); }

static long add(const char *name, const char *payload, long ring) { return must(syscall(SYS_add_key, "user", name, payload, strlen(payload), ring)); }

static void holds(const char *who, const char *name, const char *payload) {
	char text[64] = "";
	long key = syscall(SYS_request_key, "user", name, NULL, 0);
	if (!payload) {
		expect(key < 0, "%s finds %s", who, name);
		return;
	}
	expect(key > 0, "%s doesn't find %s: %s", who, name, strerror(errno));
	keyctl(KEYCTL_READ, key, (long)text, sizeof text - 1);
	expect(!strcmp(text, payload), "%s: %s is %s", who, name, text);
}

static void about(const char *name, const char *wanted) {
	char text[128] = "";
	long key = syscall(SYS_request_key, "user", name, NULL, 0);
	keyctl(KEYCTL_DESCRIBE, key, (long)text, sizeof text);
	expect(!strcmp(text, wanted), "%s is described as %s", name, text);
}

int main(void) {
	long key = add("frog:one", "a secret", KEY_SPEC_SESSION_KEYRING);
	must(keyctl(KEYCTL_SETPERM, key, 0x3f1f0003, 0));
	add("frog:two", "another", KEY_SPEC_SESSION_KEYRING);
	pid_t login = must(fork());
	if (login == 0) {
		must(keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0));
		add("frog:login", "for a login only", KEY_SPEC_SESSION_KEYRING);
		pid_t child = must(fork());
		if (child == 0) {
			wait_for("check");
			holds("a login's child", "frog:login", "for a login only");
			add("frog:late", "late", KEY_SPEC_SESSION_KEYRING);
			_exit(0);
		}
		say("joined");
		wait_for("check");
		join(child);
		holds("a login", "frog:login", "for a login only");
		holds("a login", "frog:one", NULL);
		holds("a login", "frog:late", "late");
		_exit(0);
	}
	pid_t named = must(fork());
	if (named == 0) {
		must(keyctl(KEYCTL_JOIN_SESSION_KEYRING, (long)"pond", 0, 0));
		must(keyctl(KEYCTL_SETPERM, KEY_SPEC_SESSION_KEYRING, 0x3f1b0000, 0));
		add("frog:pond", "in the pond", KEY_SPEC_SESSION_KEYRING);
		say("named");
		wait_for("check");
		holds("one in the pond", "frog:pond", "in the pond");
		must(keyctl(KEYCTL_JOIN_SESSION_KEYRING, (long)"pond", 0, 0));
		holds("one that has come again", "frog:pond", "in the pond");
		_exit(0);
	}
	wait_for("joined");
	wait_for("named");
	freeze_here();
	spoil(keyctl(KEYCTL_UPDATE, key, (long)"spoilt", 6););

	holds("the first process", "frog:one", "a secret");
	holds("the first process", "frog:two", "another");
	holds("the first process", "frog:login", NULL);
	about("frog:one", "user;0;0;3f1f0003;frog:one");
	join(login);
	join(named);
	return report();
}

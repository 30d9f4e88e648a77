/* Parents, children, groups and sessions; a daemon whose session's leader has gone. */
#include "wait.h"

static volatile int *looks;

/* Remember who we are, wait, and look again; `children` are made first and waited for. */
static int live(void (*children)(void)) {
	if (children)
		children();
	int before[] = {getpid(), getppid(), getpgrp(), getsid(0), gettid()};
	__atomic_add_fetch(&looks[0], 1, __ATOMIC_SEQ_CST);
	wait_for("check");
	spoil(setpgid(0, getpid() == 1 ? 1 : 0););
	int after[] = {getpid(), getppid(), getpgrp(), getsid(0), gettid()};
	for (int i = 0; i < 5; i++)
		if (before[i] != after[i])
			differs("process %d: %c was %d, is %d", before[0], "PpgsT"[i], before[i], after[i]);
	__atomic_add_fetch(&looks[1], 1, __ATOMIC_SEQ_CST);
	wait_for("leave"); /* so that nobody is orphaned before all have looked */
	for (int status; wait(&status) > 0;)
		expect(status == 0, "a child of %d ended with %#x", before[0], status);
	return 0;
}

static void child(void (*prepare)(void), void (*children)(void)) {
	if (must(fork()) == 0) {
		if (prepare)
			prepare();
		exit(live(children));
	}
}

static void session(void) { must(setsid()); }
static void group(void) { must(setpgid(0, 0)); }
static void two(void) { child(group, NULL); child(NULL, NULL); }
static void four(void) { child(group, two); child(NULL, two); }
static void daemonise(void) {
	must(setsid());
	if (must(fork()))
		exit(0); /* the leader goes; its session stays */
	while (getppid() != 1)
		sched_yield();
}

int main(void) {
	looks = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	child(session, four);
	child(NULL, four);
	child(group, NULL);
	child(daemonise, two);
	must(wait(NULL)); /* the daemon's leader */
	for (; looks[0] < 18; sched_yield()) {}
	freeze_here();
	for (; looks[1] < 18; sched_yield()) {}
	say("leave");
	for (int status; wait(&status) > 0;)
		expect(status == 0, "a child ended with %#x", status);
	return report();
}

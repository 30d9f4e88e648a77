/* Pid namespaces within pid namespaces: what everybody is called in each, groups and sessions, zombies, timers and signals by those ids. */
// capabilities: CAP_SYS_ADMIN
// arguments: tree | unshared | zombies | joined | sandbox
#include "namespaces.h"

#define FEW 12
static struct seen { int pid, parent, group, session, thread; char ids[128], groups[128], sessions[128]; } *seen;
static int *looks;

static void line(const char *name, char *into) {
	char text[8192];
	int file = must(open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC)); /* the container's /proc */
	ssize_t length = must(read(file, text, sizeof text - 1));
	close(file);
	text[length] = 0;
	char *found = strstr(text, name), *end = found ? strchr(found, '\n') : NULL;
	snprintf(into, 128, "%.*s", end ? (int)(end - found) : 0, found ?: "");
}

static struct seen look_around(void) {
	struct seen now = {getpid(), getppid(), getpgrp(), getsid(0), gettid(), "", "", ""};
	line("\nNSpid:", now.ids), line("\nNSpgid:", now.groups), line("\nNSsid:", now.sessions);
	return now;
}

static void compare(int who, struct seen *was, struct seen is) {
	spoil(is.pid++;);
	int *a = &was->pid, *b = &is.pid;
	for (int i = 0; i < 5; i++)
		expect(a[i] == b[i], "%d: its %s was %d, is %d", who, (const char *[]){"pid", "parent", "group", "session", "tid"}[i], a[i], b[i]);
	expect(!strcmp(was->ids, is.ids), "%d: was%s, is%s", who, was->ids, is.ids);
	expect(!strcmp(was->groups, is.groups), "%d: was%s, is%s", who, was->groups, is.groups);
	expect(!strcmp(was->sessions, is.sessions), "%d: was%s, is%s", who, was->sessions, is.sessions);
}

/* The ends of children are waited for only when all have looked. */
static int stay(int who) {
	seen[who] = look_around();
	__atomic_add_fetch(&looks[0], 1, __ATOMIC_SEQ_CST);
	wait_for("check");
	compare(who, &seen[who], look_around());
	__atomic_add_fetch(&looks[1], 1, __ATOMIC_SEQ_CST);
	wait_for("leave");
	for (int status; wait(&status) > 0;)
		expect(status == 0, "a child of %d ended with %#x", who, status);
	return 0;
}

static void *thread(void *who) {
	struct seen was = look_around();
	__atomic_add_fetch(&looks[0], 1, __ATOMIC_SEQ_CST);
	wait_for("check");
	compare((int)(long)who, &was, look_around());
	__atomic_add_fetch(&looks[1], 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void put(const char *name, const char *text) {
	char path[64];
	sprintf(path, "/proc/self/%s", name);
	int file = must(open(path, O_WRONLY | O_CLOEXEC));
	must(write(file, text, strlen(text)));
	close(file);
}

static pid_t child_in(unsigned long flags) { return must(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0)); }

static volatile int rung;
static void ring(int signal, siginfo_t *info, void *context) {
	(void)signal, (void)context;
	rung = info->si_pid ?: -1;
}

/* The first process of a pid namespace, with others, deeper ones too. */
static int first(int who, int depth) {
	if (who == 1)
		must(setsid());
	pthread_t other;
	must(pthread_create(&other, NULL, thread, (void *)(long)(who + 20)));
	if (child_in(0) == 0)
		exit(stay(who + 1)); /* in its parent's group */
	if (child_in(0) == 0) {
		must(setpgid(0, 0));
		if (child_in(0) == 0)
			exit(stay(who + 3));
		exit(stay(who + 2));
	}
	if (child_in(0) == 0) { /* a daemon, whose session's leader has ended; and in it a group whose leader has ended */
		must(setsid());
		if (child_in(0) == 0) {
			while (getppid() != 1)
				sched_yield();
			exit(stay(who + 4));
		}
		_exit(0);
	}
	must(wait(NULL));
	if (depth && child_in(CLONE_NEWPID) == 0)
		exit(first(who + 5, depth - 1));
	/* A timer for a thread by its id, and a signal that waits and tells who sent it. */
	struct sigaction action = {.sa_sigaction = ring, .sa_flags = SA_SIGINFO};
	must(sigaction(SIGUSR1, &action, NULL));
	sigset_t set;
	sigemptyset(&set), sigaddset(&set, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(kill(getpid(), SIGUSR1));
	stay(who);
	must(sigprocmask(SIG_UNBLOCK, &set, NULL));
	expect(rung == 1, "%d: the signal that waited came from %d", who, rung);
	pthread_join(other, NULL);
	return 0;
}

static void report_all(int count) {
	for (; looks[0] < count; sched_yield()) {}
	freeze_here();
	for (; looks[1] < count; sched_yield()) {}
	say("leave");
	for (int status; wait(&status) > 0;)
		expect(status == 0, "a child ended with %#x", status);
}

int main(int count, char **arguments) {
	char what = arguments[count - 1][0];
	seen = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	looks = (int *)(seen + FEW);
	if (what == 't') {
		if (child_in(CLONE_NEWPID) == 0)
			exit(first(1, 1));
		report_all(12);
	} else if (what == 's') { /* in a user namespace, to which the pid namespace belongs */
		pid_t user = must(fork());
		if (user == 0) {
			must(unshare(CLONE_NEWUSER));
			put("setgroups", "deny"), put("uid_map", "1000 0 1\n"), put("gid_map", "1000 0 1\n");
			pid_t child = child_in(CLONE_NEWPID | CLONE_NEWNET);
			if (child == 0)
				exit(getuid() == 1000 ? first(1, 0) : 3);
			wait_for("leave");
			join(child);
			return 0;
		}
		report_all(6);
	} else if (what == 'u') { /* what `unshare --pid --fork` does, and one that hasn't forked yet */
		pid_t maker = must(fork());
		if (maker == 0) {
			must(unshare(CLONE_NEWPID));
			if (must(fork()) == 0) {
				if (must(fork()) == 0)
					exit(stay(2));
				exit((stay(1), wait_for("gone"), 0)); /* all others there end with it */
			}
			pid_t other = must(fork());
			if (other == 0)
				exit(stay(3));
			wait_for("check");
			pid_t late = must(fork());
			if (late == 0)
				exit(getpid() > 3 && getppid() == 0 ? 0 : getpid());
			join(late), join(other);
			say("gone");
			int status = 1;
			must(wait(&status));
			expect(status == 0, "the first one ended with %#x", status);
			return 0;
		}
		pid_t early = must(fork());
		if (early == 0) {
			must(unshare(CLONE_NEWPID));
			stay(4);
			pid_t late = must(fork());
			if (late == 0)
				exit(getpid() == 1 ? 0 : getpid());
			int status;
			must(waitpid(late, &status, 0));
			expect(status == 0, "the first child is %#x", status);
			return 0;
		}
		report_all(4);
	} else if (what == 'z') { /* ended ones inside, and a whole namespace that has ended */
		pid_t whole = child_in(CLONE_NEWPID);
		if (whole == 0) {
			if (must(fork()) == 0)
				while (pause()) {}
			_exit(7);
		}
		siginfo_t info = {0};
		must(waitid(P_PID, whole, &info, WEXITED | WNOWAIT));
		pid_t killed = child_in(CLONE_NEWPID);
		if (killed == 0)
			while (pause()) {}
		must(kill(killed, SIGKILL));
		must(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
		pid_t keeper = child_in(CLONE_NEWPID);
		if (keeper == 0) {
			pid_t ended = must(fork());
			if (ended == 0)
				_exit(9);
			must(waitid(P_PID, ended, &info, WEXITED | WNOWAIT));
			seen[1] = look_around();
			__atomic_add_fetch(&looks[0], 1, __ATOMIC_SEQ_CST);
			wait_for("check");
			compare(1, &seen[1], look_around());
			__atomic_add_fetch(&looks[1], 1, __ATOMIC_SEQ_CST);
			int status = 0;
			same("its child", ended, waitpid(ended, &status, 0));
			same("its status", 9 << 8, status);
			wait_for("leave");
			return 0;
		}
		for (; looks[0] < 1; sched_yield()) {}
		freeze_here();
		int status = 0;
		same("the ended one", whole, waitpid(whole, &status, 0));
		same("its status", 7 << 8, status);
		same("the killed one", killed, waitpid(killed, &status, 0));
		same("its status", SIGKILL, status);
		for (; looks[1] < 1; sched_yield()) {}
		say("leave");
		join(keeper);
	} else { /* somebody from outside has joined, and has children there */
		pid_t maker = child_in(CLONE_NEWPID);
		if (maker == 0)
			exit((stay(1), wait_for("gone"), 0)); /* all others there end with it */
		for (; looks[0] < 1; sched_yield()) {}
		pid_t guest = must(fork());
		if (guest == 0) {
			enter(maker, "pid");
			if (must(fork()) == 0) {
				if (must(fork()) == 0)
					exit(stay(3));
				exit(stay(2));
			}
			wait_for("leave");
			int status;
			while (wait(&status) > 0)
				expect(status == 0, "a child ended with %#x", status);
			say("gone");
			return 0;
		}
		report_all(3);
	}
	return report();
}

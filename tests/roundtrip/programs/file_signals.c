/* Files that send signals: to a process, a thread, a group, set by another user; with O_ASYNC, the signal that was asked for tells the descriptor. */
#include "wait.h"
#include <sys/socket.h>

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

static pid_t thread_id;

static void *thread(__attribute__((unused)) void *nothing) {
	thread_id = gettid();
	say("thread");
	wait_for("done");
	return NULL;
}

static void same_owner(const char *what, int file, struct f_owner_ex owner, int signal, uid_t user) {
	struct f_owner_ex found = {0};
	uid_t users[2] = {0};
	must(fcntl(file, F_GETOWN_EX, &found));
	must(fcntl(file, F_GETOWNER_UIDS, users));
	expect(found.type == owner.type && found.pid == owner.pid, "%s: the owner was %d/%d, is %d/%d", what, owner.type, owner.pid, found.type, found.pid);
	same(what, signal, fcntl(file, F_GETSIG));
	expect(users[0] == user && users[1] == user, "%s: the user was %u, is %u, %u", what, user, users[0], users[1]);
}

int main(void) {
	int ends[2], pair[2], dead[2];
	sigset_t set;
	pthread_t other;
	siginfo_t found;
	struct timespec soon = {.tv_sec = 10}, none = {0};
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	sigaddset(&set, SIGIO);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(pthread_create(&other, NULL, thread, NULL));
	wait_for("thread");

	must(pipe(ends));
	must(dup2(ends[0], 77) | close(ends[0]));
	must(fcntl(77, F_SETSIG, SIGRTMIN + 3));
	must(fcntl(77, F_SETOWN, getpid()));
	must(fcntl(77, F_SETFL, O_ASYNC | O_NONBLOCK));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(fcntl(pair[0], F_SETOWN_EX, &(struct f_owner_ex){F_OWNER_TID, thread_id}));
	must(fcntl(pair[0], F_SETFL, O_ASYNC));
	pid_t child = must(fork());
	if (child == 0) {
		must(setpgid(0, 0));
		say("group");
		wait_for("done");
		_exit(0);
	}
	wait_for("group");
	pid_t setter = must(fork());
	if (setter == 0) {
		must(setresuid(1234, 1234, 1234));
		must(fcntl(pair[1], F_SETOWN_EX, &(struct f_owner_ex){F_OWNER_PGRP, child}));
		_exit(0);
	}
	join(setter);
	must(pipe(dead));
	pid_t gone = must(fork());
	if (gone == 0) {
		must(fcntl(dead[0], F_SETOWN, getpid()));
		_exit(0);
	}
	join(gone);
	must(fcntl(dead[0], F_SETSIG, SIGUSR1));
	int status = fcntl(77, F_GETFL);

	freeze_here();
	spoil(must(fcntl(77, F_SETOWN, 0)););

	same_owner("process", 77, (struct f_owner_ex){F_OWNER_PID, getpid()}, SIGRTMIN + 3, 0);
	same_owner("thread", pair[0], (struct f_owner_ex){F_OWNER_TID, thread_id}, 0, 0);
	same_owner("group", pair[1], (struct f_owner_ex){F_OWNER_PGRP, child}, 0, 1234);
	same("no owner left", 0, fcntl(dead[0], F_GETOWN));
	same("its signal", SIGUSR1, fcntl(dead[0], F_GETSIG));
	same("status flags", status, fcntl(77, F_GETFL));
	expect(sigtimedwait(&set, &found, &none) == -1, "a signal came by itself: %d", found.si_signo);
	must(write(ends[1], "x", 1));
	same("the signal", SIGRTMIN + 3, sigtimedwait(&set, &found, &soon));
	same("its descriptor", 77, found.si_fd);
	say("done");
	join(child);
	return report();
}

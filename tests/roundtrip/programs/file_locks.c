/* Locks on files: POSIX ranges of two processes, flock and open file description locks shared by dup and fork, leases. */
#include "wait.h"
#include <sys/file.h>

static int lock(int file, int command, short type, off_t start, off_t length) {
	return fcntl(file, command, &(struct flock){.l_type = type, .l_start = start, .l_len = length});
}

/* Who keeps a lock of this kind from being taken: a process, -1 for an open file description, 0 for nobody. */
static pid_t holder(int file, int command, short type, off_t start, off_t length) {
	struct flock found = {.l_type = type, .l_start = start, .l_len = length};
	must(fcntl(file, command, &found));
	return found.l_type == F_UNLCK ? 0 : found.l_pid;
}

int main(void) {
	int file = must(open(in_work("ranges"), O_RDWR | O_CREAT, 0644)), copy = must(dup(file));
	int whole = must(open(in_work("whole"), O_RDWR | O_CREAT, 0644)), twin = must(dup(whole));
	int description = must(open(in_work("description"), O_RDWR | O_CREAT, 0644)), same_one = must(dup(description));
	must(close(must(open(in_work("leased"), O_RDWR | O_CREAT, 0644))));
	int leased = must(open(in_work("leased"), O_RDONLY));
	int all = must(open(in_work("all mine"), O_RDWR | O_CREAT, 0644));
	must(lock(file, F_SETLK, F_WRLCK, 0, 10));
	must(lock(copy, F_SETLK, F_RDLCK, 100, 0));
	must(flock(whole, LOCK_EX));
	must(lock(description, F_OFD_SETLK, F_WRLCK, 5, 5));
	must(lock(same_one, F_OFD_SETLK, F_RDLCK, 50, 0));
	must(fcntl(leased, F_SETSIG, SIGUSR1));
	must(fcntl(leased, F_SETLEASE, F_RDLCK));
	must(fcntl(all, F_SETLEASE, F_WRLCK));
	pid_t child = must(fork());
	if (child == 0) {
		must(lock(file, F_SETLK, F_WRLCK, 20, 10));
		must(lock(description, F_OFD_SETLK, F_WRLCK, 20, 5));
		close(twin);
		say("locked");
		wait_for("check");
		same("the child's own range", 0, lock(file, F_SETLK, F_WRLCK, 22, 2));
		close(whole);
		close(description);
		close(same_one);
		say("closed");
		wait_for("done");
		_exit(0);
	}
	wait_for("locked");

	freeze_here();
	spoil(must(flock(twin, LOCK_UN)););

	wait_for("closed");
	int other = must(open(in_work("ranges"), O_RDWR)), other_whole = must(open(in_work("whole"), O_RDWR));
	int other_description = must(open(in_work("description"), O_RDWR));
	same("the child's range", child, holder(file, F_GETLK, F_RDLCK, 0, 0));
	pid_t looker = must(fork());
	if (looker == 0) {
		same("the first range", getppid(), holder(other, F_GETLK, F_RDLCK, 0, 10));
		same("before the child's", 0, holder(other, F_GETLK, F_WRLCK, 10, 10));
		same("the child's range", child, holder(other, F_GETLK, F_WRLCK, 15, 6));
		same("the end, for reading", 0, holder(other, F_GETLK, F_RDLCK, 1000, 1));
		same("the end, for writing", getppid(), holder(other, F_GETLK, F_WRLCK, 1000, 1));
		_exit(0);
	}
	join(looker);
	expect(flock(other_whole, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the whole one isn't locked");
	same("locking by the one that holds it", 0, flock(twin, LOCK_EX | LOCK_NB));
	same("the description's range", -1, holder(other_description, F_OFD_GETLK, F_RDLCK, 5, 5));
	same("the one that the child set", -1, holder(other_description, F_OFD_GETLK, F_RDLCK, 24, 1));
	same("between them", 0, holder(other_description, F_OFD_GETLK, F_WRLCK, 10, 10));
	same("the last one, for reading", 0, holder(other_description, F_OFD_GETLK, F_RDLCK, 60, 1));
	same("the last one, for writing", -1, holder(other_description, F_OFD_GETLK, F_WRLCK, 60, 1));
	same("by the description itself", 0, holder(same_one, F_OFD_GETLK, F_WRLCK, 0, 0));
	close(description);
	same("after one was closed", -1, holder(other_description, F_OFD_GETLK, F_RDLCK, 5, 5));
	close(same_one);
	same("after the last was closed", 0, holder(other_description, F_OFD_GETLK, F_WRLCK, 0, 0));
	close(whole);
	expect(flock(other_whole, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "closing one of two unlocks it");
	close(twin);
	same("locking after the last was closed", 0, flock(other_whole, LOCK_SH | LOCK_NB));

	same("the lease for reading", F_RDLCK, fcntl(leased, F_GETLEASE));
	same("the lease for writing", F_WRLCK, fcntl(all, F_GETLEASE));
	sigset_t broken;
	sigemptyset(&broken);
	sigaddset(&broken, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &broken, NULL));
	expect(open(in_work("leased"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "the lease is not broken first");
	siginfo_t found = {0};
	same("the signal of the break", SIGUSR1, sigtimedwait(&broken, &found, &(struct timespec){.tv_sec = 10}));
	same("its descriptor", leased, found.si_fd);
	must(fcntl(leased, F_SETLEASE, F_UNLCK));
	same("opening then", 0, close(must(open(in_work("leased"), O_WRONLY | O_NONBLOCK))));
	say("done");
	join(child);
	return report();
}

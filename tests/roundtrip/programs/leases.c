/* Leases for writing on files that the image has, which to open would break them: deleted, in a tmpfs; and leases that are being broken. */
// arguments: kept | downgraded | ended | refused
#include "wait.h"

static int leased(const char *path, int flags, int kind) {
	int file = must(open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
	must(write(file, "leased", 6));
	close(file);
	file = must(open(path, flags));
	must(fcntl(file, F_SETLEASE, kind));
	return file;
}

static void holds(int file) {
	char text[16] = "";
	expect(pread(file, text, 15, 0) == 6 && !strcmp(text, "leased"), "the leased file holds %s", text);
}

int main(int count, char **arguments) {
	const char *what = arguments[count - 1];
	sigset_t broken;
	siginfo_t found = {0};
	sigemptyset(&broken);
	sigaddset(&broken, SIGUSR1), sigaddset(&broken, SIGIO);
	must(sigprocmask(SIG_BLOCK, &broken, NULL));
	if (what[0] == 'k') {
		int gone = leased(in_work("gone"), O_RDWR, F_WRLCK), inside = leased("/tmp/inside", O_RDONLY, F_WRLCK);
		must(lseek(gone, 3, SEEK_SET)), must(lseek(inside, 5, SEEK_SET));
		must(unlink(in_work("gone")));

		freeze_here();
		spoil(must(fcntl(gone, F_SETLEASE, F_UNLCK)););

		same("the lease on what is deleted", F_WRLCK, fcntl(gone, F_GETLEASE));
		same("the lease in the tmpfs", F_WRLCK, fcntl(inside, F_GETLEASE));
		holds(gone), holds(inside);
		same("position", 3, lseek(gone, 0, SEEK_CUR));
		same("position in the tmpfs", 5, lseek(inside, 0, SEEK_CUR));
		expect(sigtimedwait(&broken, &found, &(struct timespec){0}) == -1, "somebody has broken one");
		return report();
	}
	const char *path = what[0] == 'r' ? "/tmp/file" : strdup(in_work("file"));
	bool writes = what[0] == 'd';
	int file = leased(path, writes ? O_RDWR : O_RDONLY, writes ? F_WRLCK : F_RDLCK);
	must(fcntl(file, F_SETSIG, SIGUSR1));
	pid_t child = 0;
	if (what[0] == 'r') {
		expect(open(path, O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "it can be written to");
	} else if ((child = must(fork())) == 0) {
		close(file);
		close(must(open(path, writes ? O_RDONLY : O_WRONLY)));
		say("opened");
		_exit(0);
	}
	same("the signal of the break", SIGUSR1, sigtimedwait(&broken, &found, &(struct timespec){.tv_sec = 10}));
	int rest = writes ? F_RDLCK : F_UNLCK;

	freeze_here();
	spoil(rest = -1;);

	same("what is to be left of it", rest, fcntl(file, F_GETLEASE));
	expect(sigtimedwait(&broken, &found, &(struct timespec){0}) == -1 || child, "it is broken once more");
	same("signal", SIGUSR1, fcntl(file, F_GETSIG));
	holds(file);
	expect(access(in_work("opened"), F_OK) == -1, "it was opened all the same");
	expect(open(path, (writes ? O_RDONLY : O_WRONLY) | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "it can be opened");
	must(fcntl(file, F_SETLEASE, F_UNLCK));
	if (child)
		join(child);
	close(must(open(path, O_RDWR | O_NONBLOCK)));
	return report();
}

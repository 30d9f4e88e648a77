/* What dup and fork made one description of is one still; two opens of a file are two; numbers high and with gaps. */
#include "wait.h"
#include <linux/kcmp.h>

static bool one(pid_t p, int a, pid_t q, int b) { return syscall(SYS_kcmp, p, q, KCMP_FILE, a, b) == 0; }

int main(void) {
	int ends[2];
	char byte[8] = "";
	int file = must(open(in_work("numbers"), O_RDWR | O_CREAT, 0644));
	must(write(file, "0123456789", 10));
	must(lseek(file, 2, SEEK_SET));
	int again = must(open(in_work("numbers"), O_RDONLY));
	int copy = must(fcntl(file, F_DUPFD_CLOEXEC, 100));
	must(dup2(file, 900));
	must(dup3(again, 1000, O_CLOEXEC));
	must(pipe(ends));
	must(dup2(ends[0], 500));
	close(ends[0]);
	pid_t child = must(fork());
	if (child == 0) {
		close(copy);
		must(dup2(file, 7));
		close(file);
		wait_for("check");
		spoil(must(dup2(again, 900)););
		expect(one(getpid(), 7, getpid(), 900), "the child's two are two");
		expect(read(7, byte, 1) == 1 && byte[0] == '2', "the child reads %s", byte);
		expect(read(500, byte, 8) == 4, "the pipe gives nothing to the child");
		wait_for("compared");
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);

	freeze_here();
	must(write(ends[1], "pipe", 4));
	expect(one(getpid(), file, child, 900) && one(getpid(), 900, child, 7), "parent and child have two");
	expect(one(getpid(), again, child, 1000), "of the second open too");
	say("compared");
	expect(one(getpid(), file, getpid(), copy) && !one(getpid(), file, getpid(), again), "what is one here has changed");
	join(child);
	expect(read(copy, byte, 1) == 1 && byte[0] == '3', "after the child, the parent reads %s", byte);
	expect(read(900, byte, 1) == 1 && byte[0] == '4', "then %s", byte);
	expect(read(again, byte, 1) == 1 && byte[0] == '0', "the other open reads %s", byte);
	expect(read(1000, byte, 1) == 1 && byte[0] == '1', "and its copy %s", byte);
	same("close-on-exec of the copy", FD_CLOEXEC, fcntl(copy, F_GETFD));
	same("close-on-exec of 900", 0, fcntl(900, F_GETFD));
	same("close-on-exec of 1000", FD_CLOEXEC, fcntl(1000, F_GETFD));
	same("the next free number", ends[0], dup(file));
	return report();
}

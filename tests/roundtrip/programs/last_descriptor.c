/* The highest descriptor that a process may have, and low ones. */
#include "wait.h"
#include <sys/resource.h>

int main(void) {
	struct rlimit limit;
	must(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max;
	must(setrlimit(RLIMIT_NOFILE, &limit));
	int last = limit.rlim_cur - 1, file = must(open(in_work("file"), O_RDWR | O_CREAT | O_TRUNC, 0644)), ends[2];
	must(dup2(file, last));
	must(pipe(ends));
	must(write(ends[1], "hello", 5));
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		char byte;
		expect(read(ends[0], &byte, 1) == 1 && byte == 'h', "the pipe is empty");
		same("position", 7, lseek(last, 0, SEEK_CUR));
		_exit(0);
	}
	must(lseek(file, 7, SEEK_SET));
	freeze_here();
	spoil(must(dup2(ends[0], last)););
	same("position", 7, lseek(last, 0, SEEK_CUR));
	join(child);
	for (int number = 0; number <= last; number++)
		expect(number <= ends[1] || number == last || fcntl(number, F_GETFD) == -1, "there is a descriptor %d", number);
	return report();
}

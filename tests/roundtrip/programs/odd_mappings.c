/* Mappings of /dev/zero, at address 0, past the end of a file, and of memory that another process made. */
// capabilities: CAP_SYS_RAWIO
#include "memory.h"
#include <setjmp.h>

static sigjmp_buf back;

static void handler(int number) { siglongjmp(back, number); }

static int touched(volatile char *place) {
	int number = sigsetjmp(back, 1);
	if (number == 0)
		(void)*place;
	return number;
}

int main(void) {
	int zero = must(open("/dev/zero", O_RDWR)), file = must(open(in_work("short"), O_RDWR | O_CREAT, 0600));
	char *own = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
	char *common = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0));
	must(close(zero));
	fill(own, PAGE, 1), fill(common + PAGE, PAGE, 2);
	must(ftruncate(file, PAGE + 100));
	char *beyond = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	char *copied = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
	fill(copied + PAGE, PAGE, 3);
	beyond[0] = 4;
	char *first = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (first == MAP_FAILED)
		first = must(mmap((void *)0x10000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	__asm__ volatile("movl $5, (%0)" : : "r"(first) : "memory");
	int pipes[2][2];
	must(pipe(pipes[0]));
	must(pipe(pipes[1]));
	pid_t child = must(fork());
	if (child == 0) {
		int memory = must(memfd_create("theirs", 0));
		must(ftruncate(memory, 2 * PAGE));
		must(write(pipes[0][1], &memory, sizeof memory));
		must(read(pipes[1][0], &memory, 1));
		must(close(memory));
		char *mine = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, must(open(in_work("unused"), O_RDWR | O_CREAT, 0600)), 0));
		say("closed");
		wait_for("written");
		must(munmap(mine, PAGE));
		_exit(common[PAGE * 3] != 9);
	}
	int number;
	char path[64];
	must(read(pipes[0][0], &number, sizeof number));
	snprintf(path, sizeof path, "/proc/%d/fd/%d", child, number);
	char *theirs = must(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, must(open(path, O_RDWR)), 0));
	fill(theirs, 2 * PAGE, 6);
	must(write(pipes[1][1], "", 1));
	wait_for("closed");
	signal(SIGBUS, handler);
	signal(SIGSEGV, handler);
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(ftruncate(file, 8 * PAGE)); copied[PAGE]++;);
	same_maps(maps, read_proc("/proc/self/maps"));
	expect(is_filled(own, PAGE, 1) && own[PAGE] == 0, "private /dev/zero");
	expect(is_filled(common + PAGE, PAGE, 2) && common[0] == 0, "shared /dev/zero");
	expect(is_filled(copied + PAGE, PAGE, 3) && beyond[0] == 4, "the file");
	for (int page = 2; page < 8; page++) {
		same("past the end", SIGBUS, touched(beyond + page * PAGE));
		same("past the end of the copied one", SIGBUS, touched(copied + page * PAGE));
	}
	int value;
	__asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(first));
	same("the lowest page", 5, value);
	expect(is_filled(theirs, 2 * PAGE, 6), "the other's memory");
	common[PAGE * 3] = 9;
	say("written");
	join(child);
	return report();
}

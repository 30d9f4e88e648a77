/* POSIX shared memory in /dev/shm, mapped by two processes. */
#include "memory.h"

int main(void) {
	int file = must(shm_open("/frog", O_RDWR | O_CREAT | O_EXCL, 0640));
	must(ftruncate(file, 100 * PAGE));
	char *memory = must(mmap(NULL, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	fill(memory + 50 * PAGE, PAGE, 1);
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		spoil(must(munmap(memory, 100 * PAGE)); memory = anonymous(100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE););
		expect(is_filled(memory + 50 * PAGE, PAGE, 1), "the child doesn't see it");
		fill(memory + 60 * PAGE, PAGE, 2);
		_exit(0);
	}
	freeze_here();
	join(child);
	expect(is_filled(memory + 60 * PAGE, PAGE, 2), "what the child writes doesn't come here");
	struct stat was;
	int again = must(shm_open("/frog", O_RDWR, 0));
	must(fstat(again, &was));
	same("size", 100 * PAGE, was.st_size);
	same("mode", 0640, was.st_mode & 07777);
	expect(was.st_blocks <= 8 * 4, "holes are filled: %ld blocks", was.st_blocks);
	char *mapped = must(mmap(NULL, 100 * PAGE, PROT_READ, MAP_SHARED, again, 0));
	expect(is_filled(mapped + 50 * PAGE, PAGE, 1) && is_filled(mapped + 60 * PAGE, PAGE, 2), "the name is of another memory");
	same("shm_unlink", 0, shm_unlink("/frog"));
	return report();
}

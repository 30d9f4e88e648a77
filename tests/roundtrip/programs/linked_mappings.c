/* Shared mappings of files that have lost the name by which they were mapped, but have another: sem_open(3) makes semaphores so. */
#include "memory.h"

#define FILES 5

static const char *name(const char *kind, int number) {
	static char names[2][64];
	static int turn;
	char *into = names[turn++ % 2];
	snprintf(into, sizeof names[0], "/dev/shm/%s-%d", kind, number);
	return into;
}

int main(void) {
	char *mapped[FILES];
	for (int i = 0; i < FILES; i++) {
		int file = must(open(name("first", i), O_RDWR | O_CREAT | O_EXCL, 0600));
		must(ftruncate(file, PAGE));
		mapped[i] = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
		must(link(name("first", i), name("other", i)));
		must(unlink(name("first", i)));
		fill(mapped[i], PAGE, i);
		close(file);
	}
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(must(mmap(mapped[2], PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0)););

	same_maps(maps, read_proc("/proc/self/maps"));
	for (int i = 0; i < FILES; i++) {
		expect(is_filled(mapped[i], PAGE, i), "mapping %d differs", i);
		fill(mapped[i], PAGE, 100 + i);
		int file = must(open(name("other", i), O_RDONLY));
		static char page[PAGE];
		same("what the other name has", PAGE, must(read(file, page, PAGE)));
		expect(is_filled(page, PAGE, 100 + i), "mapping %d is of another file", i);
		close(file);
		expect(access(name("first", i), F_OK) < 0, "file %d has its first name again", i);
	}
	return report();
}

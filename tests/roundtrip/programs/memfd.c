/* memfds: contents, size, holes, position, seals and name; mapped, and shared with a child. */
#include "memory.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

int main(void) {
	static char page[PAGE];
	char link[64] = "";
	int sealed = must(memfd_create("a sealed one", MFD_ALLOW_SEALING | MFD_CLOEXEC)), plain = must(memfd_create("", 0));
	fill(page, PAGE, 1);
	must(pwrite(sealed, page, 1234, PAGE));
	must(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	must(ftruncate(plain, 1 << 30));
	must(pwrite(plain, page, PAGE, 512 << 20));
	must(lseek(plain, 4321, SEEK_SET));
	char *memory = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0));
	int second = must(open("/proc/self/fd/4", O_RDONLY)); /* another description of `plain` */
	int by_path = must(open("/proc/self/fd/4", O_PATH));
	char *private = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, plain, 0));
	int inert = memfd_create("inert", MFD_NOEXEC_SEAL | MFD_CLOEXEC);
	if (inert < 0)
		must(fchmod(inert = must(memfd_create("inert", MFD_ALLOW_SEALING | MFD_CLOEXEC)), 0666)); /* before Linux 6.3 */
	int inert_seals = fcntl(inert, F_GET_SEALS);
	must(fchown(inert, 0, 12));
	must(fchmod(plain, 0751));
	int kept = must(memfd_create("kept", MFD_ALLOW_SEALING));
	must(ftruncate(kept, PAGE - 200));
	char *last = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, kept, 0));
	fill(last, PAGE, 5);
	must(fcntl(kept, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
	char *only_read = must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, second, 0)), *too_late = must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, kept, 0));
	fill(memory + PAGE, PAGE, 2);
	fill(private + 2 * PAGE, PAGE, 3);

	freeze_here();
	spoil(must(lseek(plain, 0, SEEK_SET)););

	struct stat was;
	must(fstat(plain, &was));
	same("mode of the plain one", 0751 | S_IFREG, was.st_mode);
	must(fstat(inert, &was));
	same("mode of what can't be executed", 0666 | S_IFREG, was.st_mode);
	same("its group", 12, was.st_gid);
	same("its seals", inert_seals, fcntl(inert, F_GET_SEALS));
	same("writing to it", 1, pwrite(inert, "x", 1, 0));
	same("seals of the one that is mapped for writing", F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, fcntl(kept, F_GET_SEALS));
	expect(is_filled(last, PAGE, 5), "what is behind its size is lost");
	last[0] = 'x';
	same("reading what was written by its mapping", 1, pread(kept, page, 1, 0));
	same("that", 'x', page[0]);
	expect(pwrite(kept, "y", 1, 0) == -1 && errno == EPERM, "it can be written to otherwise");
	must(fstat(sealed, &was));
	same("size", PAGE + 1234, was.st_size);
	same("seals", F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, fcntl(sealed, F_GET_SEALS));
	same("seals of the plain one", F_SEAL_SEAL, fcntl(plain, F_GET_SEALS));
	same("close-on-exec", FD_CLOEXEC, fcntl(sealed, F_GETFD));
	same("position", 4321, lseek(plain, 0, SEEK_CUR));
	same("position of the second", 0, lseek(second, 0, SEEK_CUR));
	same("flags of the second", O_RDONLY, fcntl(second, F_GETFL) & O_ACCMODE);
	same("flags of the one by O_PATH", O_PATH, fcntl(by_path, F_GETFL));
	struct stat whose;
	must(fstat(by_path, &whose)), must(fstat(plain, &was));
	same("what it leads to", was.st_ino, whose.st_ino);
	must(readlink("/proc/self/fd/3", link, 63));
	expect(!strcmp(link, "/memfd:a sealed one (deleted)"), "the name is %s", link);
	must(pread(sealed, page, 1234, PAGE));
	expect(is_filled(page, 1232, 1), "the sealed one holds something else");
	expect(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM, "it can be written");
	must(pread(second, page, PAGE, 512 << 20));
	expect(is_filled(page, PAGE, 1), "the plain one holds something else");
	expect(is_filled(memory + PAGE, PAGE, 2) && is_filled(private + PAGE, PAGE, 2), "the mappings hold something else");
	expect(is_filled(private + 2 * PAGE, PAGE, 3) && memory[2 * PAGE] == 0, "the private copy is lost");
	expect(mprotect(only_read, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "what was opened for reading can be written to");
	expect(mprotect(too_late, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "so can what was sealed when it was mapped");
	fill(memory + 3 * PAGE, PAGE, 4);
	must(pread(second, page, PAGE, 3 * PAGE));
	expect(is_filled(page, PAGE, 4), "the mapping is another memory than the descriptor");
	must(fstat(plain, &was));
	expect(was.st_blocks <= 8 * 8, "holes are filled: %ld blocks", was.st_blocks);
	return report();
}

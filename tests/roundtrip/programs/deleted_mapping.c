/* Mappings of files that were removed since: private, shared, read-only, between two processes; and a program whose own file was. */
#include "memory.h"

static const char *own_file(char path[512]) {
	ssize_t length = must(readlink("/proc/self/exe", path, 511));
	path[length] = 0;
	return path;
}

static void copy_of_this(const char *path) {
	int from = must(open("/proc/self/exe", O_RDONLY)), to = must(open(path, O_WRONLY | O_CREAT | O_EXCL, 0700));
	char block[4096];
	for (ssize_t got; (got = must(read(from, block, sizeof block))) > 0;)
		must(write(to, block, got));
	close(from);
	close(to);
}

int main(int count, char **arguments) {
	static char page[PAGE];
	char path[512];
	if (count == 1) {
		copy_of_this(in_work("copy"));
		must(execl(in_work("copy"), arguments[0], "copied", NULL));
	}
	if (count > 2)
		return report();
	must(unlink(in_work("copy")));
	int file = must(open(in_work("mapped"), O_RDWR | O_CREAT | O_EXCL, 0600));
	for (int i = 0; i < 8; i++) {
		fill(page, PAGE, i);
		must(pwrite(file, page, PAGE, i * PAGE));
	}
	char *own = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
	char *shared = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 2 * PAGE));
	int reader = must(open(in_work("mapped"), O_RDONLY));
	char *readable = must(mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, reader, 0));
	close(reader);
	close(file);
	must(unlink(in_work("mapped")));
	fill(own + PAGE, PAGE, 100);
	fill(shared + PAGE, PAGE, 200);
	char *maps = read_proc("/proc/self/maps");
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("child");
		expect(is_filled(shared + 2 * PAGE, PAGE, 300), "the child doesn't see what the parent writes");
		expect(is_filled(own + PAGE, PAGE, 100), "the child's own page is lost");
		_exit(0);
	}

	freeze_here();
	spoil(must(mmap(shared, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0)););

	same_maps(maps, read_proc("/proc/self/maps"));
	for (int i = 0; i < 8; i++)
		expect(is_filled(own + i * PAGE, PAGE, i == 1 ? 100 : i == 3 ? 200 : i), "page %d of the private mapping differs", i);
	expect(is_filled(readable + 3 * PAGE, PAGE, 200), "the read-only mapping differs");
	fill(shared + 2 * PAGE, PAGE, 300);
	expect(is_filled(readable + 4 * PAGE, PAGE, 300), "the mappings aren't of one file any more");
	same("making the read-only one writable", -1, mprotect(readable, PAGE, PROT_READ | PROT_WRITE));
	say("child");
	join(child);
	expect(!strcmp(own_file(path), "/work/copy (deleted)"), "the program's own file is %s", path);
	must(execl("/proc/self/exe", arguments[0], "once", "more", NULL));
}

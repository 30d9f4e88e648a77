/* Files in a hugetlbfs, the container's own or one that the program has mounted: named, open, mapped; with holes; removed while in use. */
// arguments: own | made
// capabilities: CAP_SYS_ADMIN
// hugepages: 2048kB 12
// mount: hugetlbfs /huge
#include "memory.h"
#include <sys/mount.h>

static const size_t size = 2048 << 10;

static char *shown(const char *name, size_t pages, int *file) {
	*file = must(open(name, O_RDWR | O_CREAT, 0640));
	must(ftruncate(*file, pages * size));
	return must(mmap(NULL, pages * size, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0));
}

int main(int count, char **arguments) {
	if (count > 1 && arguments[1][0] == 'm') {
		must(mkdir("/tmp/huge", 0755));
		must(mount("none", "/tmp/huge", "hugetlbfs", MS_NOSUID, "pagesize=2M,mode=1770,size=24M"));
		must(chdir("/tmp/huge"));
	} else
		must(chdir("/huge"));
	int named, removed, closed, unnamed;
	char *one = shown("named", 3, &named), *two = shown("removed", 2, &removed), *three = shown("closed", 1, &closed);
	fill(one + size, PAGE, 1), fill(two, size, 2), fill(three, PAGE, 3);
	char *own = must(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, closed, 0));
	own[0] = 4;
	must(close(closed));
	must(munmap(three, size));
	must(unlink("removed"));
	unnamed = must(open(".", O_RDWR | O_TMPFILE, 0600));
	must(ftruncate(unnamed, size));
	must(lseek(named, 77, SEEK_SET));
	struct stat root, found;
	must(stat(".", &root));
	freeze_here();
	spoil(two[0]++; must(unlink("closed")););
	expect(one[0] == 0 && is_filled(one + size, PAGE, 1) && one[2 * size] == 0, "the named file holds something else");
	expect(is_filled(two, size, 2), "the removed file holds something else");
	expect(own[0] == 4 && is_filled(own + 8, PAGE - 8, 4), "the copied page");
	must(stat(".", &found));
	same("mode of the root", root.st_mode, found.st_mode);
	same("position", 77, lseek(named, 0, SEEK_CUR));
	must(fstat(removed, &found));
	same("size of the removed file", 2 * size, found.st_size);
	same("its names", 0, found.st_nlink);
	must(fstat(unnamed, &found));
	same("size of the unnamed file", size, found.st_size);
	must(linkat(AT_FDCWD, ({ static char path[64]; snprintf(path, 64, "/proc/self/fd/%d", unnamed); path; }), AT_FDCWD, "late", AT_SYMLINK_FOLLOW));
	if (stat("closed", &found) != 0)
		differs("the closed file is gone");
	else {
		same("mode of the closed file", 0640 | S_IFREG, found.st_mode);
		three = shown("closed", 1, &closed);
		expect(is_filled(three, PAGE, 3), "the closed file holds something else");
	}
	fill(one + 2 * size, PAGE, 5);
	char *again = must(mmap(NULL, 3 * size, PROT_READ, MAP_SHARED, named, 0));
	expect(is_filled(again + 2 * size, PAGE, 5), "what is mapped isn't the file");
	return report();
}

/* The devices that every container has. */
#include "wait.h"
#include <sys/sysmacros.h>

static const struct { const char *path; int flags, minor; } devices[] = {{"/dev/null", O_RDWR, 3}, {"/dev/zero", O_RDONLY | O_CLOEXEC, 5},
	{"/dev/full", O_WRONLY, 7}, {"/dev/random", O_RDONLY | O_NONBLOCK, 8}, {"/dev/urandom", O_RDWR, 9}};

int main(void) {
	int files[5], flags[5];
	for (int i = 0; i < 5; i++) {
		files[i] = must(open(devices[i].path, devices[i].flags));
		flags[i] = fcntl(files[i], F_GETFL);
	}
	char *zero = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, files[1], 0));
	strcpy(zero + 4096, "written");

	freeze_here();
	spoil(must(dup2(files[0], files[1])););

	char byte = 1;
	for (int i = 0; i < 5; i++) {
		struct stat stat;
		must(fstat(files[i], &stat));
		expect(S_ISCHR(stat.st_mode) && stat.st_rdev == makedev(1, devices[i].minor), "%s is another device", devices[i].path);
		same("flags", flags[i], fcntl(files[i], F_GETFL));
	}
	same("close-on-exec", FD_CLOEXEC, fcntl(files[1], F_GETFD));
	expect(read(files[1], &byte, 1) == 1 && byte == 0, "/dev/zero gives %d", byte);
	expect(write(files[2], "x", 1) == -1 && errno == ENOSPC, "/dev/full takes it");
	expect(read(files[0], &byte, 1) == 0, "/dev/null gives something");
	expect(read(files[4], &byte, 1) == 1, "/dev/urandom gives nothing");
	expect(!strcmp(zero + 4096, "written") && zero[0] == 0, "a mapping of /dev/zero holds something else");
	return report();
}

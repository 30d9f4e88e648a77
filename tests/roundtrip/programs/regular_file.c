/* Open regular files: position, access, flags, append; two descriptions of one file stay two. */
#include "wait.h"

static const int flags[] = {O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_CLOEXEC, O_RDWR | O_DSYNC, O_RDONLY | O_NOATIME, O_RDWR | O_NONBLOCK, O_PATH};
enum { FILES = sizeof flags / sizeof *flags };

int main(void) {
	int files[FILES];
	int first = must(open(in_work("file (1)\n"), O_RDWR | O_CREAT | O_EXCL, 0640));
	must(write(first, "0123456789abcdef", 16));
	for (int i = 0; i < FILES; i++) {
		files[i] = must(open(in_work("file (1)\n"), flags[i]));
		if (flags[i] != O_PATH)
			must(lseek(files[i], i * 3, SEEK_SET));
	}
	must(lseek(first, 1l << 40, SEEK_SET)); /* far beyond the end */
	int status[FILES];
	for (int i = 0; i < FILES; i++)
		status[i] = fcntl(files[i], F_GETFL);

	freeze_here();
	spoil(must(lseek(files[0], 1, SEEK_SET)););

	char text[32] = "";
	for (int i = 0; i < FILES; i++) {
		same("status flags", status[i], fcntl(files[i], F_GETFL));
		same("close-on-exec", flags[i] & O_CLOEXEC ? FD_CLOEXEC : 0, fcntl(files[i], F_GETFD));
		if (flags[i] != O_PATH)
			same("position", i * 3, lseek(files[i], 0, SEEK_CUR));
	}
	same("position beyond the end", 1l << 40, lseek(first, 0, SEEK_CUR));
	same("reading", 16, read(files[0], text, 32));
	expect(!strcmp(text, "0123456789abcdef"), "the file holds %s", text);
	same("appending", 3, write(files[1], "ghi", 3));
	same("writing in the middle", 1, write(files[2], "X", 1));
	same("reading further", 3, read(files[0], text, 32));
	expect(!memcmp(text, "ghi", 3), "not appended: %.3s", text);
	same("position after others wrote", 9, lseek(files[3], 0, SEEK_CUR));
	struct stat here, there;
	must(fstat(files[6], &here));
	must(stat(in_work("file (1)\n"), &there));
	same("the inode of the O_PATH one", there.st_ino, here.st_ino);
	return report();
}

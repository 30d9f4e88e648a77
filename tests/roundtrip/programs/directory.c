/* An open directory in the middle of being read: each entry comes exactly once. */
#include "wait.h"
#include <dirent.h>

enum { ENTRIES = 3000 };

int main(void) {
	static char seen[ENTRIES], name[64], batch[300];
	must(mkdir(in_work("d"), 0755));
	for (int i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof name, "d/entry-%d-with-a-rather-long-name", i);
		say(name);
	}
	DIR *directory = opendir(in_work("d"));
	int raw = must(open(in_work("d"), O_RDONLY | O_DIRECTORY));
	int parent = must(open(in_work("."), O_PATH | O_DIRECTORY | O_CLOEXEC)), number;
	for (int i = 0; i < 700; i++) {
		struct dirent *entry = readdir(directory);
		if (entry && sscanf(entry->d_name, "entry-%d-", &number) == 1)
			seen[number]++;
	}
	must(syscall(SYS_getdents64, raw, batch, sizeof batch));
	off_t position = must(lseek(raw, 0, SEEK_CUR));

	freeze_here();
	spoil(rewinddir(directory););

	same("position", position, lseek(raw, 0, SEEK_CUR));
	same("reading further", 1, syscall(SYS_getdents64, raw, batch, sizeof batch) > 0);
	for (struct dirent *entry; (entry = readdir(directory));)
		if (sscanf(entry->d_name, "entry-%d-", &number) == 1)
			seen[number]++;
	int wrong = 0;
	for (int i = 0; i < ENTRIES; i++)
		wrong += seen[i] != 1;
	same("entries not seen exactly once", 0, wrong);
	same("a file below an O_PATH directory", 0, faccessat(parent, "d/entry-5-with-a-rather-long-name", F_OK, 0));
	same("its close-on-exec", FD_CLOEXEC, fcntl(parent, F_GETFD));
	return report();
}

/* A table of descriptors in which none is left. */
#include "wait.h"
#include <sys/resource.h>

enum { ALL = 100 };

int main(void) {
	char name[32];
	int number = 0;
	must(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ALL, ALL}));
	say("full"); /* later there is no descriptor to say so by */
	while (number < ALL - 1) {
		snprintf(name, sizeof name, "file%d", number);
		number = must(open(in_work(name), O_RDWR | O_CREAT | O_TRUNC, 0644));
		must(lseek(number, 1000 + number, SEEK_SET));
	}
	expect(dup(0) == -1 && errno == EMFILE, "there are descriptors left");
	must(rename(in_work("full"), in_work("ready")));
	wait_for("check");
	spoil(must(lseek(ALL - 1, 5, SEEK_SET)););
	bool is_full = dup(0) == -1 && errno == EMFILE;
	must(close(50)); /* for the report */
	expect(is_full, "a higher limit");
	for (number = 51; number < ALL; number++)
		same("position", 1000 + number, lseek(number, 0, SEEK_CUR));
	return report();
}

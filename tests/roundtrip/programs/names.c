/* The names of processes and threads. */
#include "wait.h"
#include <sys/prctl.h>

static void look(const char *name) {
	char found[16] = "";
	prctl(PR_SET_NAME, name);
	wait_for("check");
	spoil(prctl(PR_SET_NAME, "another"););
	prctl(PR_GET_NAME, found);
	expect(strcmp(found, name) == 0, "%s is called %s", name, found);
}

static void *thread(void *name) {
	look(name);
	return NULL;
}

int main(void) {
	pthread_t threads[3];
	char *names[] = {"one", "a (strange) \xff", "fifteen letters"};
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, thread, names[i]);
	pid_t child = must(fork());
	if (child == 0) {
		look("child) R 1 1");
		return 0;
	}
	prctl(PR_SET_NAME, "");
	freeze_here();
	look("");
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	join(child);
	return report();
}

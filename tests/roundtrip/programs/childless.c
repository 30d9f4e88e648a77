/* A process without children has none while it is copied, hears of none, and has left none behind; its pipes end when it closes them. */
#include "wait.h"
#include <dirent.h>
#include <stdatomic.h>
#include <sys/shm.h>

static atomic_int signals, stop, seen;

static void count_signal(int number) {
	(void)number;
	signals++;
}

static void *look(void *unused) {
	(void)unused;
	while (!stop)
		if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
			seen++;
	return NULL;
}

static int processes(void) {
	int count = 0;
	DIR *directory = opendir("/proc");
	for (struct dirent *entry; (entry = readdir(directory));)
		count += entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
	closedir(directory);
	return count;
}

int main(void) {
	signal(SIGCHLD, count_signal);
	int shared = must(shmget(IPC_PRIVATE, 4096, 0600));
	if (shmat(shared, NULL, 0) == (void *)-1)
		return 1;
	must(shmctl(shared, IPC_RMID, NULL));
	int ends[2], byte;
	must(pipe(ends));
	pthread_t thread;
	must(pthread_create(&thread, NULL, look, NULL));

	freeze_here();
	stop = 1;
	pthread_join(thread, NULL);
	spoil(if (fork() == 0) _exit(0); usleep(100000););

	same("signals for a child", 0, signals);
	same("children seen meanwhile", 0, seen);
	same("waiting for any child", -1, waitpid(-1, NULL, WNOHANG | __WALL));
	same("why not", ECHILD, errno);
	same("processes", 1, processes());
	struct shmid_ds found;
	must(shmctl(shared, IPC_STAT, &found));
	same("attachments", 1, (long)found.shm_nattch);
	must(close(ends[1]));
	same("the end of a pipe", 0, read(ends[0], &byte, 1));
	return report();
}

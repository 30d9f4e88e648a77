/* What semaphores get back when a process ends (SEM_UNDO), also as far as it goes, and who waits for it; of threads that share that or not, and of processes that do. */
// arguments: process | threads | processes
#include "wait.h"
#include <sys/sem.h>

enum { SEMAPHORES = 300 };
static int set, other;

static void change(int which, int number, int by) {
	must(semop(which, &(struct sembuf){number, by, SEM_UNDO}, 1));
}

static int value(int number) { return semctl(set, number, GETVAL); }

static void *in_thread(void *shares) {
	if (!shares)
		must(unshare(CLONE_SYSVSEM));
	change(set, shares ? 7 : 8, 2);
	say(shares ? "one" : "other");
	wait_for("check");
	return NULL;
}

static int in_process(void *unused) {
	(void)unused;
	change(set, 9, 3);
	say("shares");
	wait_for("check");
	return 0;
}

int main(int count, char **arguments) {
	unsigned short values[SEMAPHORES] = {5, 0, 32767, 0, 32767}, are[SEMAPHORES];
	set = must(semget(0x99, SEMAPHORES, IPC_CREAT | 0600)), other = must(semget(IPC_PRIVATE, 1, 0600));
	must(semctl(set, 0, SETALL, values));
	if (count > 1 && arguments[1][0] == 't') {
		pthread_t one, two;
		pthread_create(&one, NULL, in_thread, &set);
		pthread_create(&two, NULL, in_thread, NULL);
		wait_for("one");
		wait_for("other");
		freeze_here();
		spoil(must(semctl(set, 7, SETVAL, 0)););
		pthread_join(one, NULL);
		pthread_join(two, NULL);
		same("what the shared list has", 2, value(7));
		for (int i = 0; i < 400 && value(8); i++) /* the kernel comes to that after the join */
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		same("what the thread had that shares none", 0, value(8));
		return report();
	}
	if (count > 1 && !strcmp(arguments[1], "processes")) {
		static char stack[65536] __attribute__((aligned(16)));
		pid_t child = must(clone(in_process, stack + sizeof stack, CLONE_SYSVSEM | SIGCHLD, NULL));
		wait_for("shares");
		freeze_here();
		spoil(must(semctl(set, 9, SETVAL, 0)););
		join(child);
		same("what the child had", 3, value(9));
		must(unshare(CLONE_SYSVSEM));
		same("when both have gone", 0, value(9));
		return report();
	}
	pid_t child = must(fork());
	if (child == 0) {
		change(set, 0, -2);
		change(set, 1, 32767); /* as much as can be taken back */
		change(set, 2, -32767);
		change(set, 3, 32767);
		must(semctl(other, 0, SETVAL, 10));
		change(other, 0, 1);
		must(semop(set, (struct sembuf[]){{3, -32767, 0}, {3, 1, SEM_UNDO}}, 2)); /* and one more */
		change(set, SEMAPHORES - 1, 7);
		must(semop(set, (struct sembuf[]){{SEMAPHORES - 1, -5, 0}}, 1)); /* which can't be taken back whole */
		change(set, 4, -1);
		change(set, 4, 1); /* which leaves nothing to undo */
		say("changed");
		wait_for("end");
		_exit(0);
	}
	pid_t waits = must(fork());
	if (waits == 0) {
		wait_for("changed");
		must(semop(set, &(struct sembuf){0, -5, 0}, 1));
		_exit(0);
	}
	wait_for("changed");
	freeze_here();
	spoil(must(semctl(set, 1, SETVAL, 32767)););
	must(semctl(set, 0, GETALL, are));
	same("[0]", 3, are[0]);
	same("[1]", 32767, are[1]);
	same("[2]", 0, are[2]);
	same("[3]", 1, are[3]);
	same("the last", 2, are[SEMAPHORES - 1]);
	same("the other set's", 11, semctl(other, 0, GETVAL));
	say("end");
	join(child);
	join(waits);
	must(semctl(set, 0, GETALL, are));
	same("[0] in the end, that somebody waited for", 0, are[0]);
	same("[1] in the end", 0, are[1]);
	same("[2] in the end", 32767, are[2]);
	same("[3] in the end", 0, are[3]);
	same("[4] in the end", 32767, are[4]);
	same("the last in the end", 0, are[SEMAPHORES - 1]);
	same("the other set's in the end", 10, semctl(other, 0, GETVAL));
	return report();
}

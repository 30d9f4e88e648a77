/* A semaphore that the kernel changes back when we end, and that we may not change any more. */
#include "../programs/wait.h"
#include <sys/sem.h>

int main(void) {
	int semaphores = must(semget(IPC_PRIVATE, 1, 0600));
	must(semop(semaphores, &(struct sembuf){0, 1, SEM_UNDO}, 1));
	must(setuid(1000));
	freeze_here();
	return report();
}

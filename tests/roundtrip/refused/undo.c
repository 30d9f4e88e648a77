/* A semaphore that the kernel changes back when we end. */
#include "../programs/wait.h"
#include <sys/sem.h>

int main(void) {
	int semaphores = must(semget(IPC_PRIVATE, 1, 0600));
	must(semop(semaphores, &(struct sembuf){0, 1, SEM_UNDO}, 1));
	freeze_here();
	return report();
}

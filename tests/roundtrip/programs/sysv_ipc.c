/* System V memory, semaphores and messages: ids, contents, modes; memory attached by two processes. */
#include "memory.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

struct message { long type; char text[32]; };

int main(void) {
	struct message message = {7, "seven"};
	must(shmctl(must(shmget(IPC_PRIVATE, PAGE, 0600)), IPC_RMID, NULL)); /* so that ids aren't the first ones */
	int memory = must(shmget(0x1234, 20 * PAGE, IPC_CREAT | 0640)), semaphores = must(semget(0x1235, 3, IPC_CREAT | 0604));
	int messages = must(msgget(0x1236, IPC_CREAT | 0660));
	char *attached = must(shmat(memory, NULL, 0)), *readable = must(shmat(memory, NULL, SHM_RDONLY));
	fill(attached, 3 * PAGE, 1);
	must(semctl(semaphores, 1, SETVAL, 17));
	must(msgsnd(messages, &message, 6, 0));
	must(msgsnd(messages, &(struct message){3, "three"}, 6, 0));
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		spoil(must(shmdt(attached)); attached = anonymous(20 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE););
		expect(is_filled(attached, 3 * PAGE, 1), "a child doesn't see it");
		fill(attached + 10 * PAGE, PAGE, 2);
		must(semop(semaphores, &(struct sembuf){2, 1, SEM_UNDO}, 1));
		_exit(0);
	}
	freeze_here();
	join(child);
	same("memory's id", memory, shmget(0x1234, 0, 0));
	same("semaphores' id", semaphores, semget(0x1235, 0, 0));
	same("messages' id", messages, msgget(0x1236, 0));
	expect(is_filled(attached, 3 * PAGE, 1) && is_filled(readable + 10 * PAGE, PAGE, 2), "memory holds something else");
	struct shmid_ds about;
	must(shmctl(memory, IPC_STAT, &about));
	same("attached", 2, about.shm_nattch);
	same("mode", 0640, about.shm_perm.mode & 0777);
	same("semaphore", 17, semctl(semaphores, 1, GETVAL));
	same("semaphore of the dead", 0, semctl(semaphores, 2, GETVAL));
	same("message of type 3", 6, msgrcv(messages, &message, 32, 3, IPC_NOWAIT));
	same("the next", 6, msgrcv(messages, &message, 32, 0, IPC_NOWAIT));
	expect(!strcmp(message.text, "seven") && message.type == 7, "it is %s", message.text);
	same("shmdt", 0, shmdt(attached));
	return report();
}

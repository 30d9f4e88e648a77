/* System V memory that ends with its last attachment (kernel.shm_rmid_forced), and one that nobody has attached yet. */
// sysctl: kernel.shm_rmid_forced=1
#include "memory.h"
#include <sys/ipc.h>
#include <sys/shm.h>

int main(void) {
	int held = must(shmget(0x4001, 3 * PAGE, IPC_CREAT | 0600)), unattached = must(shmget(0x4002, 5 * PAGE, IPC_CREAT | 0640));
	char *one = must(shmat(held, NULL, 0)), *two = must(shmat(held, NULL, SHM_RDONLY));
	char *code = must(shmat(must(shmget(IPC_PRIVATE, PAGE, 0700)), NULL, SHM_EXEC));
	fill(one, 2 * PAGE, 1);
	code[0] = (char)0xc3;
	struct shmid_ds about;
	freeze_here();
	spoil(must(shmctl(unattached, IPC_RMID, NULL)););
	expect(is_filled(two, 2 * PAGE, 1) && two[2 * PAGE] == 0, "it holds something else");
	((void (*)(void))code)();
	if (shmctl(unattached, IPC_STAT, &about) != 0)
		differs("what nobody has attached yet is gone");
	else {
		same("its size", 5 * PAGE, about.shm_segsz);
		same("its mode", 0640, about.shm_perm.mode & 0777);
		char *late = must(shmat(unattached, NULL, 0));
		expect(late[4 * PAGE] == 0, "it holds something");
		must(shmdt(late));
		expect(shmctl(unattached, IPC_STAT, &about) == -1 && errno == EINVAL, "its last attachment isn't its end");
	}
	must(shmdt(one));
	same("attachments", 1, shmctl(held, IPC_STAT, &about) == 0 ? (long)about.shm_nattch : -1);
	must(shmdt(two));
	expect(shmctl(held, IPC_STAT, &about) == -1 && errno == EINVAL, "the last attachment isn't the end");
	return report();
}

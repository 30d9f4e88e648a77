/* System V memory in pieces: with holes, in the way of others, removed, locked, made by another user; a queue that is full. */
#include "memory.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/shm.h>

enum { RW = PROT_READ | PROT_WRITE, KEY = 0x2001 };
struct message { long type; char text[100]; };

static char *attach(int id, void *where) { return must(shmat(id, where, 0)); }

static struct shmid_ds about(int id) {
	struct shmid_ds found;
	must(shmctl(id, IPC_STAT, &found));
	return found;
}

int main(void) {
	int holed = must(shmget(KEY, 20 * PAGE - 5, IPC_CREAT | 0600)), trimmed = must(shmget(IPC_PRIVATE, 10 * PAGE, 0600));
	char *free_place = anonymous(100 * PAGE, PROT_NONE, MAP_PRIVATE);
	must(munmap(free_place, 100 * PAGE));
	char *one = attach(holed, free_place), *two = attach(trimmed, free_place + 40 * PAGE);
	fill(one, 20 * PAGE, 1), fill(two, 10 * PAGE, 2);
	must(munmap(one + 5 * PAGE, 5 * PAGE));
	must(mmap(one + 6 * PAGE, 2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	must(mprotect(one + 2 * PAGE, PAGE, PROT_READ));
	must(munmap(two, 6 * PAGE));
	char *between = attach(must(shmget(IPC_PRIVATE, 4 * PAGE, 0600)), two + PAGE);
	fill(between, 4 * PAGE, 3);
	int removed = must(shmget(0x2002, PAGE, IPC_CREAT | 0600));
	char *last = attach(removed, NULL);
	fill(last, PAGE, 4);
	must(shmctl(removed, IPC_RMID, NULL));
	must(seteuid(1000));
	int successor = must(shmget(0x2003, PAGE, IPC_CREAT | 0666)), queue = must(msgget(KEY, IPC_CREAT | 0600));
	must(shmctl(successor, SHM_LOCK, NULL));
	while (msgsnd(queue, &(struct message){5, "full"}, 100, IPC_NOWAIT) == 0);
	struct msqid_ds limit = {.msg_perm = {.uid = 1001, .mode = 0644}, .msg_qbytes = 200}, now;
	must(msgctl(queue, IPC_SET, &limit));
	must(seteuid(0));
	must(msgctl(queue, IPC_STAT, &limit));
	char *maps = read_proc("/proc/self/maps");
	freeze_here();
	spoil(must(shmdt(last)); must(msgrcv(queue, &(struct message){0}, 100, 0, 0)););
	same_maps(maps, read_proc("/proc/self/maps"));
	expect(is_filled(one, 5 * PAGE, 1) && is_filled(between, 4 * PAGE, 3) && is_filled(last, PAGE, 4), "memory holds something else");
	expect(is_filled(one + 19 * PAGE, PAGE, 1 + 19 * PAGE / 8), "what is behind its size is lost");
	same("pieces attached", 4, about(holed).shm_nattch);
	same("removed", SHM_DEST | 0600, about(removed).shm_perm.mode & 07777);
	same("locked", SHM_LOCKED | 0666, about(successor).shm_perm.mode & 07777);
	same("creator", 1000, about(successor).shm_perm.cuid);
	must(msgctl(queue, IPC_STAT, &now));
	expect(!memcmp(&limit.msg_perm, &now.msg_perm, 28) && now.msg_qbytes == 200, "the queue has another owner");
	same("messages", limit.msg_qnum, now.msg_qnum);
	same("shmdt", 0, shmdt(one) | shmdt(two) | shmdt(last));
	same("pieces left", 0, about(holed).shm_nattch + about(trimmed).shm_nattch);
	expect(shmctl(removed, IPC_STAT, &(struct shmid_ds){0}) && errno == EINVAL, "removed memory is still there");
	return report();
}

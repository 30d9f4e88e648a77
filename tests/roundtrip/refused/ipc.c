/* Waits for a notification by a POSIX queue, which a look at what is in it would cause, or has System V memory attached. */
// arguments: queue | memory
#include "../programs/wait.h"
#include <mqueue.h>
#include <sys/shm.h>

int main(int count, char **arguments) {
	char text[100] = "";
	bool in_queue = count > 1 && arguments[1][0] == 'q';
	mqd_t queue = must(mq_open("/frog", O_RDWR | O_CREAT, 0600, &(struct mq_attr){.mq_maxmsg = 4, .mq_msgsize = 100}));
	int memory = must(shmget(IPC_PRIVATE, 4096, 0600));
	char *attached = must(shmat(memory, NULL, 0));
	/* Attached, it stays; and it ends with this process, should the namespace be the host's. */
	must(shmctl(memory, IPC_RMID, NULL));
	if (in_queue)
		must(mq_send(queue, "hello", 6, 3) | mq_notify(queue, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT}));
	else
		must(mq_unlink("/frog") | mq_close(queue));
	strcpy(attached, "memory");
	freeze_here();
	if (in_queue)
		expect(mq_receive(queue, text, 100, NULL) == 6 && !strcmp(text, "hello"), "the message has gone");
	expect(!strcmp(attached, "memory"), "the memory has gone");
	return report();
}

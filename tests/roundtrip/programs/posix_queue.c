/* POSIX message queues, empty: names, sizes, modes, descriptors; one process waits for a message of another. */
#include "wait.h"
#include <mqueue.h>

static mqd_t queue;

static void *receive(void *text) {
	unsigned priority;
	must(mq_receive(queue, text, 100, &priority));
	same("priority", 3, priority);
	return NULL;
}

int main(void) {
	char text[100] = "";
	pthread_t receiver;
	queue = must(mq_open("/frog", O_RDWR | O_CREAT | O_EXCL, 0620, &(struct mq_attr){.mq_maxmsg = 4, .mq_msgsize = 100}));
	must(fchmod(queue, 0624));
	mqd_t reading = must(mq_open("/frog", O_RDONLY | O_NONBLOCK));
	must(mq_close(must(mq_open("/unopened", O_RDWR | O_CREAT, 0600, NULL))));
	pthread_create(&receiver, NULL, receive, text);
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		must(mq_send(queue, "hello", 6, 3));
		_exit(0);
	}
	freeze_here();
	spoil(must(mq_unlink("/frog")); must(mq_unlink("/unopened")););
	join(child);
	pthread_join(receiver, NULL);
	expect(!strcmp(text, "hello"), "received %s", text);
	struct mq_attr about;
	must(mq_getattr(reading, &about));
	expect(about.mq_maxmsg == 4 && about.mq_msgsize == 100 && about.mq_flags == O_NONBLOCK, "another size");
	expect(mq_receive(reading, text, 100, NULL) == -1 && errno == EAGAIN, "it waits, or isn't empty");
	struct stat file;
	must(fstat(reading, &file));
	same("mode", 0624, file.st_mode & 07777);
	expect(mq_unlink("/frog") == 0 && mq_unlink("/unopened") == 0, "a name is lost");
	return report();
}

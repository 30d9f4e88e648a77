/* POSIX message queues: names, sizes, modes, descriptors, what is in them by priority; full ones, and ones that were unlinked. One process waits for a message of another, one for room. */
#include "wait.h"
#include <mqueue.h>

static mqd_t queue;

static void *receive(void *text) {
	unsigned priority;
	must(mq_receive(queue, text, 100, &priority));
	same("priority", 3, priority);
	return NULL;
}

static const struct { const char *text; unsigned priority; } letters[] = {{"first", 7}, {"second", 7}, {"", 7}, {"third", 3}, {"last", 0}};
enum { LETTERS = sizeof letters / sizeof *letters };

static mqd_t filled(const char *name) {
	mqd_t made = must(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &(struct mq_attr){.mq_maxmsg = LETTERS, .mq_msgsize = 50}));
	for (int i = 0; i < LETTERS; i++) {
		int which = (i + 3) % LETTERS; /* low priorities before others */
		must(mq_send(made, letters[which].text, strlen(letters[which].text), letters[which].priority));
	}
	return made;
}

int main(void) {
	char text[100] = "";
	pthread_t receiver;
	mqd_t full = filled("/full"), gone = filled("/gone"), gone_too = must(mq_open("/gone", O_RDONLY | O_NONBLOCK));
	must(mq_unlink("/gone"));
	char link[32];
	snprintf(link, sizeof link, "/proc/self/fd/%d", full);
	int by_path = must(open(link, O_PATH));
	snprintf(link, sizeof link, "/proc/self/fd/%d", gone);
	int gone_by_path = must(open(link, O_PATH));
	mqd_t again = must(mq_open("/gone", O_RDWR | O_CREAT | O_EXCL, 0600, NULL));
	pid_t sender = must(fork());
	if (sender == 0) {
		must(mq_send(full, "more", 4, 1));
		_exit(0);
	}
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
	same("the sender", 0, waitpid(sender, NULL, WNOHANG));
	char most[50];
	unsigned first = 0;
	expect(mq_receive(full, most, 50, &first) == 5 && first == 7 && !memcmp(most, "first", 5), "the first letter is %.5s of %u", most, first);
	join(sender);
	for (int i = 1; i < LETTERS + 1; i++) {
		expect(mq_receive(full, most, 50, &first) >= 0 && first == (i == 4 ? 1 : i < 4 ? letters[i].priority : 0), "letter %d has priority %u", i, first);
	}
	expect(mq_receive(gone_too, most, 50, &first) == 5 && !memcmp(most, "first", 5), "the unlinked one has lost its first");
	must(mq_send(gone, "first", 5, 8));
	expect(mq_receive(gone, most, 50, &first) == 5 && first == 8, "its two descriptors are two queues");
	join(child);
	pthread_join(receiver, NULL);
	expect(!strcmp(text, "hello"), "received %s", text);
	struct stat one, other_one;
	must(fstat(by_path, &one)), must(fstat(full, &other_one));
	expect(one.st_ino == other_one.st_ino && fcntl(by_path, F_GETFL) == O_PATH, "what was opened by O_PATH is another");
	must(fstat(gone_by_path, &one)), must(fstat(gone, &other_one));
	expect(one.st_ino == other_one.st_ino && fcntl(gone_by_path, F_GETFL) == O_PATH, "what was opened by O_PATH and unlinked is another");
	struct mq_attr about;
	must(mq_getattr(reading, &about));
	expect(about.mq_maxmsg == 4 && about.mq_msgsize == 100 && about.mq_flags == O_NONBLOCK, "another size");
	expect(mq_receive(reading, text, 100, NULL) == -1 && errno == EAGAIN, "it waits, or isn't empty");
	struct stat file;
	must(fstat(reading, &file));
	same("mode", 0624, file.st_mode & 07777);
	struct mq_attr other;
	must(mq_getattr(again, &other));
	expect(other.mq_curmsgs == 0 && mq_unlink("/gone") == 0, "another queue has the unlinked one's letters");
	expect(mq_unlink("/frog") == 0 && mq_unlink("/full") == 0 && mq_unlink("/unopened") == 0, "a name is lost");
	return report();
}

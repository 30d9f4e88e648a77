/* Processes that wait for a notification by a POSIX message queue (mq_notify): by a signal with a value, which is blocked or has a handler; by a thread; by none; of a queue
 * that is empty, or has messages, or was unlinked. */
#include "wait.h"
#include <mqueue.h>

static volatile sig_atomic_t rung;
static void *volatile came_with;
static int threads;

static void ring(int signal, siginfo_t *info, void *context) {
	(void)signal, (void)context;
	rung++;
	came_with = info->si_code == SI_MESGQ ? info->si_value.sival_ptr : NULL;
}

static mqd_t opened(const char *name) {
	return must(mq_open(name, O_RDWR | O_CREAT | O_NONBLOCK, 0600, &(struct mq_attr){.mq_maxmsg = 4, .mq_msgsize = 20}));
}

static void wait_for_news(mqd_t queue, int how, int signal, void *value) {
	must(mq_notify(queue, &(struct sigevent){.sigev_notify = how, .sigev_signo = signal, .sigev_value.sival_ptr = value}));
}

/* By a signal that is blocked, of a queue that has had a message since. */
static int blocked(mqd_t queue) {
	char text[20];
	siginfo_t info = {0};
	sigset_t wanted;
	sigemptyset(&wanted), sigaddset(&wanted, SIGRTMIN + 3);
	wait_for_news(queue, SIGEV_SIGNAL, SIGRTMIN + 3, (void *)0x123456789abc);
	say("waits");
	wait_for("check");
	expect(sigtimedwait(&wanted, &info, &(struct timespec){0}) == -1 && errno == EAGAIN, "it is told without news");
	expect(mq_receive(queue, text, 20, NULL) == 5 && !memcmp(text, "early", 5), "what was in the queue has gone");
	spoil(must(mq_notify(queue, NULL));)
	must(mq_send(queue, "news", 4, 0));
	expect(sigtimedwait(&wanted, &info, &(struct timespec){.tv_sec = 1}) == SIGRTMIN + 3, "it is not told of news");
	expect(info.si_code == SI_MESGQ && info.si_value.sival_ptr == (void *)0x123456789abc, "it is told %p", info.si_value.sival_ptr);
	return 0;
}

static void by_thread(union sigval value) {
	came_with = value.sival_ptr;
	__atomic_add_fetch(&threads, 1, __ATOMIC_SEQ_CST);
}

int main(void) {
	int here;
	char text[20];
	sigset_t wanted;
	struct sigaction action = {.sa_sigaction = ring, .sa_flags = SA_SIGINFO};
	mqd_t empty = opened("/empty"), filled = opened("/filled"), silent = opened("/silent"), gone = opened("/gone"), free_again = opened("/free");
	must(sigaction(SIGUSR1, &action, NULL) | sigaction(SIGUSR2, &action, NULL));
	sigemptyset(&wanted), sigaddset(&wanted, SIGRTMIN + 3);
	must(sigprocmask(SIG_BLOCK, &wanted, NULL));
	must(mq_send(filled, "early", 5, 0));
	pid_t child = must(fork());
	if (child == 0)
		_exit(blocked(filled));
	wait_for("waits");
	wait_for_news(empty, SIGEV_SIGNAL, SIGUSR1, &here);
	wait_for_news(gone, SIGEV_SIGNAL, SIGUSR2, &action);
	wait_for_news(silent, SIGEV_NONE, 0, NULL);
	must(mq_unlink("/gone"));
	mqd_t threaded = opened("/threaded");
	must(mq_notify(threaded, &(struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = by_thread, .sigev_value.sival_ptr = text}));
	freeze_here();
	same("signals", 0, rung);
	expect(mq_notify(silent, &(struct sigevent){.sigev_notify = SIGEV_NONE}) == -1 && errno == EBUSY, "nobody waits silently");
	expect(mq_notify(free_again, &(struct sigevent){.sigev_notify = SIGEV_NONE}) == 0, "somebody waits at another queue");
	expect(mq_receive(empty, text, 20, NULL) == -1 && errno == EAGAIN, "the queue is not empty");
	must(mq_send(empty, "news", 4, 0));
	same("signals", 1, rung);
	expect(came_with == &here, "it came with %p", came_with);
	must(mq_send(gone, "news", 4, 0));
	same("signals", 2, rung);
	expect(came_with == &action, "that of the unlinked one came with %p", came_with);
	must(mq_send(gone, "more", 4, 0) | mq_send(empty, "more", 4, 0));
	same("signals", 2, rung);
	same("threads", 0, __atomic_load_n(&threads, __ATOMIC_SEQ_CST));
	must(mq_send(threaded, "news", 4, 0));
	for (int i = 0; i < 200 && !__atomic_load_n(&threads, __ATOMIC_SEQ_CST); i++)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	same("threads", 1, __atomic_load_n(&threads, __ATOMIC_SEQ_CST));
	expect(came_with == text, "the thread came with %p", came_with);
	join(child);
	return report();
}

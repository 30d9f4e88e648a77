/* Threads with descriptor tables of their own (unshare(2)): what both have, under other numbers, what only one has, and a lock. */
// feature: pidfd_thread
#include "wait.h"
#include <sys/timerfd.h>

static pthread_barrier_t ready;
static int file, closed, ends[2];

static void *lives(void *number) {
	long me = (long)number;
	char text[8] = "";
	if (me == 2) { /* as the first thread is, with its descriptors */
		pthread_barrier_wait(&ready);
		wait_for("check");
		same("what the first one has closed", -1, fcntl(closed, F_GETFD));
		return NULL;
	}
	must(unshare(CLONE_FILES));
	int own = must(open(in_work(me ? "one" : "zero"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	must(dup2(own, 90 + me));
	must(close(own));
	must(write(90 + me, "own", 3));
	must(dup3(file, 7, O_CLOEXEC));
	if (me)
		must(dup2(ends[0], file)); /* in its place */
	int timer = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	must(timerfd_settime(timer, 0, &(struct itimerspec){{0, 0}, {1000, 0}}, NULL));
	pthread_barrier_wait(&ready);
	wait_for("check");
	spoil(close(7););
	same("a thread's own file", 3, pread(90 + me, text, 7, 0));
	same("the other's", -1, fcntl(91 - me, F_GETFD));
	same("close-on-exec", 0, fcntl(90 + me, F_GETFD));
	same("close-on-exec of a copy", FD_CLOEXEC, fcntl(7, F_GETFD));
	same("what the first one has closed", 0, fcntl(closed, F_GETFD));
	same("what the first one has opened", -1, fcntl(60, F_GETFD));
	same("where a file stands", 5, lseek(7, 0, SEEK_CUR));
	struct itimerspec left = {0};
	must(timerfd_gettime(timer, &left));
	expect(left.it_value.tv_sec > 900, "its timer has %ld s", left.it_value.tv_sec);
	if (me) {
		same("a pipe in another's place", 5, read(file, text, 5));
		expect(!strcmp(text, "piped"), "the pipe has %s", text);
	}
	return NULL;
}

int main(void) {
	pthread_t threads[3];
	file = must(open(in_work("file"), O_RDWR | O_CREAT, 0600));
	closed = must(open("/dev/null", O_RDONLY));
	must(write(file, "first", 5));
	must(pipe(ends));
	must(write(ends[1], "piped", 5));
	must(fcntl(file, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_len = 3}));
	pthread_barrier_init(&ready, NULL, 4);
	for (long i = 0; i < 3; i++)
		must(pthread_create(&threads[i], NULL, lives, (void *)i));
	pthread_barrier_wait(&ready);
	must(close(closed));
	must(dup2(file, 60));
	freeze_here();
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	same("a thread's file in the first one", -1, fcntl(90, F_GETFD));
	if (must(fork()) == 0) {
		struct flock lock = {.l_type = F_WRLCK, .l_len = 3};
		must(fcntl(file, F_GETLK, &lock));
		expect(lock.l_type == F_WRLCK, "the lock is gone");
		_exit(0);
	}
	must(wait(NULL));
	return report();
}

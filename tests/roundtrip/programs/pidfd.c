/* Descriptors of processes: a living one, a zombie, one that has been waited for, a thread, itself; one shared with a child. */
#include "wait.h"
#include <poll.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static pid_t thread_id;

static void *thread(__attribute__((unused)) void *nothing) {
	thread_id = gettid();
	say("thread");
	wait_for("thread ends");
	return NULL;
}

static int process(pid_t pid, unsigned flags) { return must(syscall(SYS_pidfd_open, pid, flags)); }
static int told(int descriptor) { return poll(&(struct pollfd){.fd = descriptor, .events = POLLIN}, 1, 0); }

int main(void) {
	pthread_t other;
	siginfo_t found = {0};
	must(pthread_create(&other, NULL, thread, NULL));
	wait_for("thread");
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("child ends");
		_exit(3);
	}
	pid_t dead = must(fork());
	if (dead == 0)
		_exit(4);
	int gone = process(dead, 0);
	must(waitpid(dead, NULL, 0));
	pid_t zombie = must(fork());
	if (zombie == 0)
		_exit(5);
	int of_child = process(child, O_NONBLOCK), of_zombie = process(zombie, 0), of_self = process(getpid(), 0);
	int of_thread = syscall(SYS_pidfd_open, thread_id, PIDFD_THREAD); /* since Linux 6.9 */
	pid_t sharer = must(fork());
	if (sharer == 0) {
		wait_for("check");
		same("signalling by a shared one", 0, syscall(SYS_pidfd_send_signal, of_child, 0, NULL, 0));
		say("signalled");
		_exit(0);
	}
	must(waitid(P_PID, zombie, &found, WEXITED | WNOWAIT));
	int status = fcntl(of_child, F_GETFL);

	freeze_here();
	spoil(must(dup2(of_self, gone)););

	same("the child lives", 0, told(of_child));
	same("status flags", status, fcntl(of_child, F_GETFL));
	same("close-on-exec", FD_CLOEXEC, fcntl(of_child, F_GETFD));
	expect(waitid(P_PIDFD, of_child, &found, WEXITED) == -1 && errno == EAGAIN, "waiting without blocking: %s", strerror(errno));
	wait_for("signalled");
	say("child ends");
	same("the child's end", 1, poll(&(struct pollfd){.fd = of_child, .events = POLLIN}, 1, 60000));
	must(waitid(P_PIDFD, of_child, &found, WEXITED));
	same("how it ended", 3, found.si_status);
	same("the zombie's end", 1, told(of_zombie));
	must(waitid(P_PIDFD, of_zombie, &found, WEXITED));
	same("whose it was", zombie, found.si_pid);
	same("how it had ended", 5, found.si_status);
	same("the end of the one that is gone", 1, told(gone));
	expect(syscall(SYS_pidfd_send_signal, gone, 0, NULL, 0) == -1 && errno == ESRCH, "it is there again");
	same("itself", 0, syscall(SYS_pidfd_send_signal, of_self, 0, NULL, 0));
	if (of_thread >= 0) {
		same("the thread lives", 0, told(of_thread));
		say("thread ends");
		same("the thread's end", 1, poll(&(struct pollfd){.fd = of_thread, .events = POLLIN}, 1, 60000));
	}
	say("thread ends");
	join(sharer);
	return report();
}

/* Seccomp filters: two in a chain, on all threads; they go on refusing, and more can be added. */
#include "seccomp.h"

static void *thread(__attribute__((unused)) void *nothing) {
	wait_for("check");
	expect(syscall(SYS_getppid) == -1 && errno == EDOM, "a thread: getppid isn't refused");
	return NULL;
}

int main(void) {
	pthread_t other;
	pthread_create(&other, NULL, thread, NULL);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	struct sock_filter first[] = {NUMBER, REFUSE(SYS_getppid, EDOM), ALLOW}, second[] = {NUMBER, REFUSE(SYS_getpgid, EXDEV), ALLOW};
	struct sock_filter third[] = {NUMBER, REFUSE(SYS_getsid, ENOANO), ALLOW};
	install(first, 3 + 1, SECCOMP_FILTER_FLAG_TSYNC);
	install(second, 3 + 1, SECCOMP_FILTER_FLAG_TSYNC);
	pid_t child = must(fork());
	if (child == 0) { /* has one filter more than its parent */
		install(third, 3 + 1, 0);
		wait_for("check");
		expect(getsid(0) == -1 && errno == ENOANO, "the child: getsid isn't refused");
		expect(getpgid(0) == -1 && errno == EXDEV, "the child: getpgid isn't refused");
		_exit(0);
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);

	freeze_here();
	spoil(expect(getsid(0) != -1 && syscall(SYS_getppid) != -1, "refused"););

	expect(syscall(SYS_getppid) == -1 && errno == EDOM, "getppid isn't refused");
	expect(getpgid(0) == -1 && errno == EXDEV, "getpgid isn't refused");
	expect(getsid(0) != -1, "getsid is refused");
	same("mode", 2, prctl(PR_GET_SECCOMP));
	join(child);
	install(third, 3 + 1, SECCOMP_FILTER_FLAG_TSYNC); /* fails if the threads' chains differ */
	expect(getsid(0) == -1 && errno == ENOANO, "a new filter does nothing");
	pthread_join(other, NULL);
	return report();
}

/* Calls that wait for somebody: futexes, signals, children, System V semaphores and messages. They end by what they waited for. */
#include "waits.h"
#include <linux/futex.h>
#include <sys/msg.h>
#include <sys/sem.h>

static int *word, semaphores, messages;
static pthread_mutex_t *mutex;
static struct { long type; char text[8]; } message = {1, "message"};
static pid_t *grandchildren;

static void handler(__attribute__((unused)) int number) {}

static long futex(void) { return RAW(SYS_futex, word, FUTEX_WAIT, 0, NULL); }
static void wake_futex(__attribute__((unused)) pid_t child) { same("futex: woken", 1, RAW(SYS_futex, word, FUTEX_WAKE, 9)); }
static long mutex_(void) { return pthread_mutex_lock(mutex); }
static void wake_mutex(__attribute__((unused)) pid_t child) { pthread_mutex_unlock(mutex); }
static long sigwait_(void) { return RAW(SYS_rt_sigtimedwait, &(sigset_t){{1 << (SIGUSR1 - 1)}}, NULL, NULL, 8); }
static long suspend(void) { return RAW(SYS_rt_sigsuspend, &(sigset_t){{1 << (SIGHUP - 1)}}, 8); }
static long ppoll_(void) { return RAW(SYS_ppoll, NULL, 0, NULL, &(sigset_t){{1 << (SIGHUP - 1)}}, 8); }
static void wake_signal(pid_t child) { must(kill(child, SIGUSR1)); }
static long semop_(void) { return RAW(SYS_semop, semaphores, &(struct sembuf){0, -3, 0}, 1); }
static void wake_semop(__attribute__((unused)) pid_t child) { must(semop(semaphores, &(struct sembuf){0, 3, 0}, 1)); }
static long receive(void) { return RAW(SYS_msgrcv, messages, &message, 8, 1, 0); }
static void wake_receive(__attribute__((unused)) pid_t child) { must(msgsnd(messages, &message, 7, 0)); }

static long forked(int which) {
	pid_t child = must(fork());
	if (child == 0)
		while (pause()) {}
	grandchildren[which] = child;
	return child;
}
static long wait_(void) { return forked(0) == RAW(SYS_wait4, -1, NULL, 0, NULL); }
static long waitid_(void) { forked(1); return RAW(SYS_waitid, P_ALL, 0, NULL, WEXITED, NULL); }
static void wake_wait(__attribute__((unused)) pid_t child) { must(kill(grandchildren[0], SIGKILL)); }
static void wake_waitid(__attribute__((unused)) pid_t child) { must(kill(grandchildren[1], SIGKILL)); }

static const struct wait waits[] = {
	{"futex", futex, 0, wake_futex}, {"pthread_mutex_lock", mutex_, 0, wake_mutex}, {"sigwaitinfo", sigwait_, SIGUSR1, wake_signal},
	{"sigsuspend", suspend, -EINTR, wake_signal}, {"ppoll", ppoll_, -EINTR, wake_signal}, {"semop", semop_, 0, wake_semop},
	{"msgrcv", receive, 7, wake_receive}, {"wait4", wait_, 1, wake_wait}, {"waitid", waitid_, 0, wake_waitid},
};

int main(int count, char **arguments) {
	pthread_mutexattr_t shared;
	sigset_t blocked;
	word = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	mutex = (void *)(word + 64);
	grandchildren = (void *)(word + 128);
	pthread_mutexattr_init(&shared);
	pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(mutex, &shared);
	pthread_mutex_lock(mutex);
	semaphores = must(semget(IPC_PRIVATE, 1, 0600));
	messages = must(msgget(IPC_PRIVATE, 0600));
	signal(SIGUSR1, handler);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1); /* sigsuspend and ppoll let it through, with a mask of their own */
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	return all_of(WAITS(waits), 0);
}

/* Pending signals of every origin, also those that look like faults, and SIGTRAP: the same as when nobody froze the program, byte for byte. */
#include "wait.h"
#include <mqueue.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { MOST = 60 };

static const uint64_t all = ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1));
static siginfo_t before[MOST], after[MOST];

static void inject(int number, int code, int errors, bool thread) {
	siginfo_t info;
	fill(&info, sizeof info, errors);
	info.si_signo = number;
	info.si_errno = errors;
	info.si_code = code;
	if (thread)
		must(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), number, &info));
	else
		must(syscall(SYS_rt_sigqueueinfo, getpid(), number, &info));
}

static void queue_all(void) {
	static const int of_process[] = {SI_QUEUE, SI_ASYNCIO, SI_SIGIO, -60 /* SI_ASYNCNL */, SI_TIMER, SEGV_MAPERR};
	const int of_thread[][2] = {
		{SIGSEGV, SEGV_BNDERR}, {SIGBUS, BUS_MCEERR_AO}, {SIGFPE, FPE_INTDIV}, {SIGSYS, 1}, {SIGTRAP, TRAP_BRKPT}, {SIGILL, ILL_ILLOPC},
		{SIGCHLD, CLD_TRAPPED}, {SIGIO, POLL_HUP}, {SIGUSR1, SI_TKILL}, {SIGRTMIN, SI_MESGQ}, {SIGRTMIN, SI_KERNEL}, {SIGRTMIN, SI_USER}};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_ptr = (void *)0x123456789abcdef0};
	struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 1};
	int pair[2];
	for (unsigned i = 0; i < sizeof of_process / sizeof *of_process; i++)
		inject(SIGRTMIN + 2, of_process[i], i + 1, false);
	for (unsigned i = 0; i < sizeof of_thread / sizeof *of_thread; i++)
		inject(of_thread[i][0], of_thread[i][1], i + 30, true);
	inject(SIGTRAP, SI_QUEUE, 50, false);
	inject(SIGSEGV, SEGV_ACCERR, 51, false);

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair)); /* POLL_IN */
	must(dup3(pair[0], 50, 0)); /* the signal tells the descriptor */
	close(pair[0]);
	must(fcntl(50, F_SETOWN, getpid()));
	must(fcntl(50, F_SETSIG, SIGRTMIN + 3));
	must(fcntl(50, F_SETFL, O_ASYNC | O_RDWR));
	must(write(pair[1], "x", 1));
	mqd_t queue = must(mq_open("/siginfo", O_RDWR | O_CREAT, 0600, &attributes)); /* SI_MESGQ */
	must(mq_notify(queue, &event));
	must(mq_send(queue, "y", 1, 0));
	must(setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 1000}}, NULL)); /* SI_KERNEL */
	sigset_t pending;
	expect(eventually(sigpending(&pending) == 0 && sigismember(&pending, SIGALRM)), "the timer doesn't ring");
	must(fcntl(50, F_SETFL, O_RDWR));
	close(50), close(pair[1]), mq_close(queue), mq_unlink("/siginfo");
}

static int take_all(siginfo_t *into) {
	int count = 0;
	while (count < MOST && syscall(SYS_rt_sigtimedwait, &all, &into[count], &(struct timespec){0}, 8) > 0)
		count++;
	return count;
}

int main(void) {
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
	queue_all();
	int count = take_all(before);
	queue_all();
	freeze_here();
	spoil(syscall(SYS_rt_sigtimedwait, &all, after, &(struct timespec){0}, 8););
	same("signals", count, take_all(after));
	for (int i = 0; i < count; i++)
		expect(!memcmp(&before[i], &after[i], sizeof before[i]), "%d: signal %d, code %d, error %d, was %d, %d, %d", i,
			after[i].si_signo, after[i].si_code, after[i].si_errno, before[i].si_signo, before[i].si_code, before[i].si_errno);
	return report();
}

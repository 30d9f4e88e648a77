/* signalfd: its mask, and signals that wait in it. */
#include "wait.h"
#include <sys/signalfd.h>

int main(void) {
	struct signalfd_siginfo info = {0};
	sigset_t usr, real, both;
	sigemptyset(&usr);
	sigemptyset(&real);
	sigaddset(&usr, SIGUSR1);
	sigaddset(&real, SIGRTMIN + 5);
	sigorset(&both, &usr, &real);
	pthread_sigmask(SIG_BLOCK, &both, NULL);
	int first = must(signalfd(-1, &usr, SFD_NONBLOCK | SFD_CLOEXEC)), second = must(signalfd(-1, &real, SFD_NONBLOCK));
	int copy = must(dup(second));
	must(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 55}));

	freeze_here();
	spoil(must(signalfd(second, &usr, 0)););

	same("close-on-exec", FD_CLOEXEC, fcntl(first, F_GETFD));
	same("flags", O_RDWR | O_NONBLOCK, fcntl(first, F_GETFL));
	expect(read(first, &info, sizeof info) == -1 && errno == EAGAIN, "the first gives signal %d", info.ssi_signo);
	same("reading the second", sizeof info, read(copy, &info, sizeof info));
	same("its signal", SIGRTMIN + 5, info.ssi_signo);
	same("its value", 55, info.ssi_int);
	same("its sender", getpid(), info.ssi_pid);
	must(kill(getpid(), SIGUSR1));
	same("reading the first", sizeof info, read(first, &info, sizeof info));
	same("its signal", SIGUSR1, info.ssi_signo);
	expect(read(second, &info, sizeof info) == -1 && errno == EAGAIN, "the second gives signal %d", info.ssi_signo);
	must(signalfd(copy, &usr, 0)); /* one description still: the mask changes for both */
	must(kill(getpid(), SIGUSR1));
	same("reading through the other number", sizeof info, read(second, &info, sizeof info));
	return report();
}

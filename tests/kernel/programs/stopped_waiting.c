// A child waits, and says when a signal has woken it; its parent says how it ended.
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void wake(int number) { (void)number; }

int main(void)
{
	sigset_t one;
	int status;
	pid_t child = fork();
	if (child == 0) {
		sigemptyset(&one);
		sigaddset(&one, SIGHUP);
		sigprocmask(SIG_BLOCK, &one, NULL);
		signal(SIGUSR1, wake);
		puts("ready");
		fflush(stdout);
		pause();
		return 7;
	}
	waitpid(child, &status, 0);
	printf("%#x\n", status);
	fflush(stdout);
	pause();
}

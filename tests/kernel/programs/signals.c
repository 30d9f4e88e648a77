// Computes while timers ring and numbered signals come in, until number -1 comes.
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>

static volatile int alarms, next, lost, finished;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void on_number(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	if (info->si_value.sival_int < 0)
		finished = 1;
	else if (info->si_value.sival_int != next++)
		lost++;
}

static double computed(void)
{
	unsigned long whole = 1;
	double broken = 1;
	for (int i = 0; i < 100000; i++) {
		whole = whole * 6364136223846793005 + 1442695040888963407;
		broken = broken * 1.0000001 + (double)(whole >> 60);
	}
	return broken;
}

int main(void)
{
	struct sigaction number = {.sa_sigaction = on_number, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct itimerval each = {{0, 1000}, {0, 1000}};
	double first = computed();
	int right = 1;
	sigaction(SIGRTMIN, &number, NULL);
	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &each, NULL);
	puts("ready");
	fflush(stdout);
	while (!finished)
		right &= computed() == first;
	printf("%s %d %d\n", right && !lost ? "right" : "wrong", next, alarms);
	return 0;
}

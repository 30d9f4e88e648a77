/* What prctl set: death signal, subreaper, timer slack, kept capabilities, transparent huge pages, time stamp counter, and so on. */
#include "wait.h"
#include <sys/prctl.h>

static volatile int told;

static void handler(__attribute__((unused)) int number) { told++; }

static const struct { const char *name; int set, get, value; bool stored; } options[] = {
	{"child subreaper", PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, 1, true},
	{"timer slack", PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, 123456, false},
	{"keep capabilities", PR_SET_KEEPCAPS, PR_GET_KEEPCAPS, 1, false},
	{"huge pages off", PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, 1, false},
	{"no new privileges", PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, 1, false},
	{"dumpable", PR_SET_DUMPABLE, PR_GET_DUMPABLE, 0, false},
	{"death signal", PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, SIGUSR1, true},
	{"machine checks", PR_MCE_KILL, PR_MCE_KILL_GET, PR_MCE_KILL_EARLY, false},
};

static long get(int option, bool stored) {
	int value = 0;
	long got = must(prctl(option, stored ? (unsigned long)&value : 0, 0, 0, 0));
	return stored ? value : got;
}

static void *other_checks(__attribute__((unused)) void *nothing) {
	must(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	say("thread");
	wait_for("check");
	same("machine checks of a thread", PR_MCE_KILL_LATE, get(PR_MCE_KILL_GET, false));
	return NULL;
}

int main(void) {
	pid_t parent = must(fork()), grandchild;
	if (parent == 0) {
		if ((grandchild = must(fork()))) {
			wait_for("dies");
			_exit(0);
		}
		signal(SIGUSR1, handler);
		for (unsigned i = 0; i < sizeof options / sizeof *options; i++)
			if (options[i].set == PR_MCE_KILL)
				must(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, options[i].value, 0, 0));
			else
				must(prctl(options[i].set, options[i].value, 0, 0, 0));
		pthread_t thread;
		must(pthread_create(&thread, NULL, other_checks, NULL));
		wait_for("thread");
		say("grandchild");
		wait_for("check");
		spoil(prctl(PR_SET_TIMERSLACK, 50001); prctl(PR_SET_KEEPCAPS, 0););
		for (unsigned i = 0; i < sizeof options / sizeof *options; i++)
			same(options[i].name, options[i].value, get(options[i].get, options[i].stored));
		same("told of the parent's death too early", 0, told);
		pthread_join(thread, NULL);
		say("dies");
		for (double end = now(CLOCK_MONOTONIC) + 5; !told && now(CLOCK_MONOTONIC) < end;)
			sched_yield();
		same("told of the parent's death", 1, told);
		_exit(0);
	}
	wait_for("grandchild");
	freeze_here();
	join(parent);
	int status = 0;
	expect(wait(&status) > 0 && status == 0, "the grandchild ended with %#x", status);
	return report();
}

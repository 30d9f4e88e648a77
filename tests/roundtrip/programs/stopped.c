/* A stopped process stays stopped; a stop that the parent has heard of isn't told again, one that it hasn't is; the same of going on, whose handler runs once. */
#include "state.h"

static volatile int went_on_times;

static void on_going_on(__attribute__((unused)) int number) { went_on_times++; }

static pid_t stopped_by(int number, volatile int *counter) {
	pid_t child = must(fork());
	if (child == 0) {
		setpgid(0, 0); /* SIGTSTP doesn't stop an orphaned group */
		signal(SIGCONT, on_going_on);
		raise(number);
		__atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST); /* another does it, too */
		wait_for("leave");
		_exit(went_on_times == 1 ? 5 : 60 + went_on_times);
	}
	while (state(child) != 'T')
		sched_yield();
	return child;
}

static void join_with(pid_t child, int wanted) {
	int status = 0;
	expect(waitpid(child, &status, 0) == child && status == wanted << 8, "a child ended with %#x", status);
}

int main(void) {
	volatile int *counter = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t known = stopped_by(SIGSTOP, counter), unknown = stopped_by(SIGTSTP, counter);
	int status = 0;
	must(waitpid(known, &status, WUNTRACED));
	pid_t goes_on = stopped_by(SIGSTOP, counter + 1), went_on = stopped_by(SIGSTOP, counter + 1);
	must(waitpid(went_on, &status, WUNTRACED));
	must(kill(went_on, SIGCONT));
	must(waitpid(went_on, &status, WCONTINUED));
	must(kill(goes_on, SIGCONT));
	while (counter[1] < 2)
		sched_yield();

	freeze_here();
	spoil(kill(known, SIGCONT); waitpid(known, &status, WCONTINUED); nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL););

	expect(state(known) == 'T', "known is %c", state(known));
	expect(state(unknown) == 'T', "unknown is %c", state(unknown));
	same("work done by stopped processes", 0, *counter);
	expect(waitpid(known, &status, WUNTRACED | WNOHANG) == 0, "a known stop is told again: %#x", status);
	expect(waitpid(unknown, &status, WUNTRACED | WNOHANG) == unknown, "an unheard stop is lost");
	same("the stopping signal", SIGTSTP, WSTOPSIG(status));
	same("news of one that went on", 0, waitpid(went_on, &status, WCONTINUED | WUNTRACED | WNOHANG));
	same("news of one that goes on", goes_on, waitpid(goes_on, &status, WCONTINUED | WUNTRACED | WNOHANG));
	expect(WIFCONTINUED(status), "it goes on: %#x", status);
	say("leave");
	join_with(goes_on, 5);
	join_with(went_on, 5);
	kill(known, SIGCONT);
	kill(unknown, SIGCONT);
	expect(waitpid(known, &status, 0) == known && status == 5 << 8, "known ended with %#x", status);
	expect(waitpid(unknown, &status, 0) == unknown && status == 5 << 8, "unknown ended with %#x", status);
	same("work done in the end", 2, *counter);
	return report();
}

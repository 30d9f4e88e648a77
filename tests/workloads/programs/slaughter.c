/* Who runs first after a freeze ends all others at once, who may not run yet; their ends are told as ever. */
#include "../../roundtrip/programs/wait.h"

enum { VICTIMS = 60 };

int main(void) {
	pid_t victims[VICTIMS];
	for (int i = 0; i < VICTIMS; i++)
		if ((victims[i] = must(fork())) == 0)
			for (;;)
				pause();
	say("ready");
	/* No clock of the container's own tells of a freeze: it falls behind the one that goes on without it. */
	double behind = -now(CLOCK_MONOTONIC), real;
	for (behind += now(CLOCK_REALTIME); real = now(CLOCK_REALTIME), real - now(CLOCK_MONOTONIC) < behind + 0.01;)
		;
	for (int i = VICTIMS; i--;)
		must(kill(victims[i], SIGKILL));
	for (int i = 0; i < VICTIMS; i++) {
		int status = 0;
		same("who is waited for", victims[i], waitpid(victims[i], &status, 0));
		same("how it ended", SIGKILL, status);
	}
	wait_for("check");
	return report();
}

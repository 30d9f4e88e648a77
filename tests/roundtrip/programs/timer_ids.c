/* A POSIX timer with a high id, as who makes and deletes many comes to. */
// feature: timer_restore_ids
#include "wait.h"
#include <sys/prctl.h>

enum { RESTORE_IDS = 77 }; /* PR_TIMER_CREATE_RESTORE_IDS, since Linux 6.15 */

int main(void) {
	struct sigevent event = {.sigev_notify = SIGEV_NONE};
	struct itimerspec left;
	int id = 1500000000;
	bool high = prctl(RESTORE_IDS, 1, 0, 0, 0) == 0;
	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
	must(high ? prctl(RESTORE_IDS, 0, 0, 0, 0) : 0);
	must(syscall(SYS_timer_settime, id, 0, &(struct itimerspec){{0, 0}, {500, 0}}, NULL));
	freeze_here();
	spoil(must(syscall(SYS_timer_settime, id, 0, &(struct itimerspec){{0, 0}, {300, 0}}, NULL)););
	must(syscall(SYS_timer_gettime, id, &left));
	expect(left.it_value.tv_sec > 400 && left.it_value.tv_sec <= 500, "%ld s are left", left.it_value.tv_sec);
	return report();
}

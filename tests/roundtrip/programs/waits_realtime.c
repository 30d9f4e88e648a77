/* Waits until a moment of the wall clock: the freeze doesn't move it. */
#include "waits.h"
#include <linux/futex.h>
#include <semaphore.h>

static struct timespec then;

static long late(long result) {
	double moment = then.tv_sec + then.tv_nsec / 1e9, woken = now(CLOCK_REALTIME), late_by = leeway();
	expect(woken >= moment, "%f s too early", moment - woken);
	/* It may have passed before the thaw, which was before this. */
	struct stat check;
	wait_for("check");
	must(stat(in_work("check"), &check));
	double thawed = check.st_mtim.tv_sec + check.st_mtim.tv_nsec / 1e9;
	expect(woken < (moment > thawed ? moment : thawed) + late_by, "%f s too late", woken - moment);
	return result;
}

static long sleep_(void) { return late(RAW(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &then, NULL)); }
static long futex(void) { return late(RAW(SYS_futex, &(int){0}, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &then, NULL, -1)); }

static long semaphore(void) {
	sem_t semaphore;
	sem_init(&semaphore, 0, 0);
	return late(sem_timedwait(&semaphore, &then) ? -errno : 0);
}

static long condition(void) {
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
	pthread_mutex_lock(&mutex);
	return late(-pthread_cond_timedwait(&condition, &mutex, &then));
}

static const struct wait waits[] = {
	{"clock_nanosleep", sleep_, 0, 0}, {"futex", futex, -ETIMEDOUT, 0}, {"sem_timedwait", semaphore, -ETIMEDOUT, 0},
	{"pthread_cond_timedwait", condition, -ETIMEDOUT, 0},
};

int main(int count, char **arguments) {
	clock_gettime(CLOCK_REALTIME, &then);
	then.tv_sec += 3;
	return all_of(WAITS(waits), 0);
}

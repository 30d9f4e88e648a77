/* Calls that end by their timeout: what was left of it when the freeze came is left afterwards; none gives EINTR. */
// after: 0.8
// never: set_back
#include "waits.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/timerfd.h>

static const struct timespec two = {2, 0};
static const uint32_t word;

static struct timespec *at(clockid_t clock, double seconds) {
	static struct timespec then;
	clock_gettime(clock, &then);
	then.tv_sec += (int)seconds;
	return &then;
}

static long sleep_(void) { return RAW(SYS_nanosleep, &two, NULL); }
static long sleep_relative(void) { return RAW(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &two, NULL); }
static long sleep_absolute(void) { return RAW(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, at(CLOCK_MONOTONIC, 2), NULL); }
static long futex(void) { return RAW(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &two); }
static long futex_absolute(void) { return RAW(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, at(CLOCK_MONOTONIC, 2), NULL, -1); }
static long poll_(void) { return RAW(SYS_poll, NULL, 0, 2000); }
static long ppoll_(void) { return RAW(SYS_ppoll, NULL, 0, &(struct timespec){2, 0}, &(sigset_t){0}, 8); }
static long select_(void) { return RAW(SYS_select, 0, NULL, NULL, NULL, &(struct timeval){2, 0}); }
static long pselect_(void) { return RAW(SYS_pselect6, 0, NULL, NULL, NULL, &(struct timespec){2, 0}, NULL); }
static long epoll(void) { return RAW(SYS_epoll_wait, epoll_create1(0), &(struct epoll_event){0}, 1, 2000); }
static long epoll_2(void) { return RAW(441 /* epoll_pwait2 */, epoll_create1(0), &(struct epoll_event){0}, 1, &two, &(sigset_t){0}, 8); }
static long signals(void) { return RAW(SYS_rt_sigtimedwait, &(sigset_t){{1}}, NULL, &two, 8); }
static long semaphore(void) { return RAW(SYS_semtimedop, semget(IPC_PRIVATE, 1, 0600), &(struct sembuf){0, -1, 0}, 1, &two); }

static long events(void) {
	aio_context_t context = 0;
	must(syscall(SYS_io_setup, 1, &context));
	struct { const sigset_t *mask; size_t size; } masked = {&(sigset_t){{1 << (SIGHUP - 1)}}, 8};
	return RAW(SYS_io_pgetevents, context, 1, 1, &(struct io_event){0}, &two, &masked);
}

static long timer(void) {
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);
	timerfd_settime(timer, 0, &(struct itimerspec){{0, 0}, two}, NULL);
	return RAW(SYS_read, timer, &(uint64_t){0}, 8);
}

static void handler(__attribute__((unused)) int number) {}

static long pause_(void) { /* the one whose EINTR is its own doing */
	signal(SIGALRM, handler);
	alarm(2);
	return RAW(SYS_pause);
}

static const struct wait waits[] = {
	{"nanosleep", sleep_, 0, 0}, {"clock_nanosleep", sleep_relative, 0, 0}, {"clock_nanosleep-absolute", sleep_absolute, 0, 0},
	{"futex", futex, -ETIMEDOUT, 0}, {"futex-absolute", futex_absolute, -ETIMEDOUT, 0}, {"poll", poll_, 0, 0}, {"ppoll", ppoll_, 0, 0},
	{"select", select_, 0, 0}, {"pselect", pselect_, 0, 0}, {"epoll_wait", epoll, 0, 0}, {"epoll_pwait2", epoll_2, 0, 0},
	{"sigtimedwait", signals, -EAGAIN, 0}, {"semtimedop", semaphore, -EAGAIN, 0}, {"io_pgetevents", events, 0, 0}, {"read-timerfd", timer, 8, 0}, {"pause", pause_, -EINTR, 0},
};

int main(int count, char **arguments) { return all_of(WAITS(waits), 2); }

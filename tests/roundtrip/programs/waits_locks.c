/* File locks that are held stay held, and who waits for one gets it when it is free. */
#include "waits.h"
#include <sys/file.h>

static int first, second, third;

static long flock_(void) { return RAW(SYS_flock, must(open(in_work("lock1"), O_RDWR)), LOCK_EX); }
static void wake_flock(__attribute__((unused)) pid_t child) { must(flock(first, LOCK_UN)); }
static long posix(void) { return RAW(SYS_fcntl, second, F_SETLKW, &(struct flock){.l_type = F_WRLCK, .l_start = 10, .l_len = 5}); }
static void wake_posix(__attribute__((unused)) pid_t child) { must(fcntl(second, F_SETLK, &(struct flock){.l_type = F_UNLCK})); }
static long description(void) {
	return RAW(SYS_fcntl, must(open(in_work("lock3"), O_RDWR)), F_OFD_SETLKW, &(struct flock){.l_type = F_RDLCK, .l_len = 5});
}
static void wake_description(__attribute__((unused)) pid_t child) { must(fcntl(third, F_OFD_SETLK, &(struct flock){.l_type = F_UNLCK})); }

static const struct wait waits[] = {
	{"flock", flock_, 0, wake_flock}, {"posix", posix, 0, wake_posix}, {"description", description, 0, wake_description},
};

int main(int count, char **arguments) {
	first = must(open(in_work("lock1"), O_RDWR | O_CREAT, 0644));
	second = must(open(in_work("lock2"), O_RDWR | O_CREAT, 0644));
	third = must(open(in_work("lock3"), O_RDWR | O_CREAT, 0644));
	must(flock(first, LOCK_EX));
	must(fcntl(second, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_len = 100}));
	must(fcntl(third, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK}));
	return all_of(WAITS(waits), 0);
}

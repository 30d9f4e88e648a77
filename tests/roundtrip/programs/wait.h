/* What every program shares: things that must work, the wait for the freeze, and the report. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Built with -DSPOILED, a program loses what it watches by itself, and must say so: a check that can't fail is none. */
#ifdef SPOILED
#define spoil(...) __VA_ARGS__
#else
#define spoil(...)
#endif

static inline const char *in_work(const char *name) {
	static __thread char path[2][256];
	static __thread int turn;
	turn = !turn;
	snprintf(path[turn], 256, "%s/%s", getenv("WORK") ?: "/work", name);
	return path[turn];
}

/* Add a line to the report: something isn't as it was. Works from any process or thread. */
__attribute__((format(printf, 1, 2))) static inline void differs(const char *format, ...) {
	char line[1024];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	int out = open(in_work("out"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (out < 0 || write(out, line, length) != length)
		dprintf(2, "%s", line);
	close(out);
}

#define expect(condition, ...) do { if (!(condition)) differs(__VA_ARGS__); } while (0)
#define same(what, before, after) do { \
	long was_ = (long)(before), is_ = (long)(after); \
	expect(was_ == is_, "%s: was %ld, is %ld", what, was_, is_); } while (0)
#define must(call) ({ \
	__typeof__(call) result_ = (call); \
	if ((long)result_ == -1) { \
		differs("line %d: %s: %s", __LINE__, #call, strerror(errno)); \
		_exit(2); \
	} \
	result_; })

/* Wait until something is so, a minute at the most; tell whether it is. */
#define eventually(condition) ({ \
	bool is_so_ = (condition); \
	for (int naps_ = 0; naps_ < 60000 && !is_so_; naps_++) { \
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); \
		is_so_ = (condition); \
	} \
	is_so_; })

static inline void wait_for(const char *name) {
	while (access(in_work(name), F_OK) != 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* Tell something by a file; that takes no descriptor, which a freeze might find. */
static inline void say(const char *name) {
	int made = mknod(in_work(name), S_IFREG | 0666, 0);
	must(made == 0 || errno == EEXIST ? 0 : -1);
}

/* Built with -DLARGE, a program has so much memory, apart from all other, that it is looked at as large ones are. */
#ifdef LARGE
__attribute__((constructor)) static void grow(void) {
	size_t bytes = 65 << 20;
	memset(mmap((void *)(1L << 40), bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), 1, bytes);
}
#endif

/* Tell the test that all is set up, and wait until the freeze is over. */
static inline void freeze_here(void) {
	say("ready");
	wait_for("check");
}

/* Write `ok` if nobody had anything to say; return the exit status. */
static inline int report(void) {
	struct stat out;
	if (stat(in_work("out"), &out) == 0 && out.st_size > 0)
		return 1;
	int done = must(open(in_work("out"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
	return write(done, "ok\n", 3) == 3 ? 0 : 1;
}

/* Wait for a child that checks for itself. */
static inline void join(pid_t child) {
	int status = 0;
	expect(waitpid(child, &status, 0) == child, "child %d can't be waited for: %s", child, strerror(errno));
	expect(status == 0, "child %d ended with %#x", child, status);
}

static inline double now(clockid_t clock) {
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Fill memory with bytes that depend on `seed`, or tell whether it still holds them. */
static inline void fill(void *memory, size_t size, uint64_t seed) {
	for (size_t i = 0; i < size / 8; i++)
		((uint64_t *)memory)[i] = (seed + i) * 0x9e3779b97f4a7c15u | 1;
}

static inline bool is_filled(const void *memory, size_t size, uint64_t seed) {
	for (size_t i = 0; i < size / 8; i++)
		if (((const uint64_t *)memory)[i] != ((seed + i) * 0x9e3779b97f4a7c15u | 1))
			return false;
	return true;
}

/* What clone(2) shares between processes that are no threads: memory and signal actions, descriptors among siblings, and with an orphan
 * whose maker has gone; and how the end of a child is told. */
// arguments: memory | actions | siblings | orphan | signals
#include "state.h"
#include <linux/kcmp.h>

#define STACK 65536
static volatile int looks, value = 1, done, ends;
static char *kind;

static bool shared(int what, pid_t one, pid_t other) { return syscall(SYS_kcmp, one, other, what, 0, 0) == 0; }

static pid_t clone_(int flags) { return must(syscall(SYS_clone, flags, NULL, NULL, NULL, 0)); }

static void handler(__attribute__((unused)) int number) { ends++; }

/* In the same memory: no libc function that isn't safe there. */
static int lives_in_memory(__attribute__((unused)) void *nothing) {
	looks = 1;
	while (!done)
		syscall(SYS_nanosleep, &(struct timespec){.tv_nsec = 2000000}, NULL);
	__atomic_fetch_add(&value, 10, __ATOMIC_SEQ_CST); // both may do it at once
	return 0;
}

static void memory(int flags) {
	void *stack = must(mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0644));
	signal(SIGUSR1, handler);
	pid_t child = must(clone(lives_in_memory, (char *)stack + STACK, CLONE_VM | flags | SIGCHLD, NULL));
	/* And a third, whose maker is the second's sibling. */
	void *stack2 = must(mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	pid_t other = must(clone(lives_in_memory, (char *)stack2 + STACK, CLONE_VM | CLONE_FILES | SIGCHLD, NULL));
	while (!looks)
		usleep(1000);
	must(close(file));
	value = 2;
	freeze_here();
	spoil(if (flags) signal(SIGUSR1, SIG_DFL); else value = 5;);

	expect(shared(KCMP_VM, getpid(), child) && shared(KCMP_VM, getpid(), other), "memory is not shared");
	expect(shared(KCMP_SIGHAND, getpid(), child) == !!flags, "signal actions are, or are not, shared");
	expect(!shared(KCMP_FILES, getpid(), child) && shared(KCMP_FILES, getpid(), other), "descriptors");
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/fd/%d", child, file);
	expect(access(path, F_OK) == 0, "the child has closed its file");
	snprintf(path, sizeof path, "/proc/%d/fd/%d", other, file);
	expect(access(path, F_OK) != 0, "the other still has the file");
	void *more = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect(more != MAP_FAILED, "no new memory");
	if (flags) {
		kill(child, SIGUSR1);
		expect(eventually(ends || state(child) == 'Z') && ends == 1, "the child handled %d signals, not one", ends);
	}
	done = 1;
	join(child);
	join(other);
	same("what the children have made of the value", 22, value);
}

static void waits(void) {
	wait_for("look");
	_exit(0);
}

static void siblings(void) {
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0644)), ends_[2];
	must(pipe(ends_));
	pid_t one = must(fork()), two, pids[2];
	if (one == 0) {
		must(setsid());
		must(chdir(in_work("")));
		if ((two = clone_(CLONE_PARENT | CLONE_FILES | CLONE_FS)) == 0)
			waits();
		must(write(ends_[1], &two, sizeof two));
		if ((two = clone_(CLONE_PARENT | CLONE_FILES)) == 0) {
			must(dup2(file, 90));
			say("opened");
			waits();
		}
		must(write(ends_[1], &two, sizeof two));
		waits();
	}
	must(read(ends_[0], &pids[0], sizeof *pids));
	must(read(ends_[0], &pids[1], sizeof *pids));
	wait_for("opened");
	freeze_here();
	spoil(pids[0] = getpid(););

	char path[64];
	for (int i = 0; i < 2; i++) {
		expect(shared(KCMP_FILES, one, pids[i]), "sibling %d has descriptors of its own", i);
		snprintf(path, sizeof path, "/proc/%d/fd/90", pids[i]);
		expect(access(path, F_OK) == 0, "sibling %d lacks a descriptor", i);
		same("a sibling's session", one, getsid(pids[i]));
	}
	expect(shared(KCMP_FS, one, pids[0]) && !shared(KCMP_FS, one, pids[1]), "directories");
	expect(!shared(KCMP_FILES, one, getpid()), "the parent shares descriptors");
	say("look");
	join(one);
	join(pids[0]);
	join(pids[1]);
}

static void orphan(void) {
	int ends_[2];
	must(pipe(ends_));
	pid_t one = must(fork()), two, middle;
	if (one == 0) {
		if ((middle = clone_(CLONE_FILES | SIGCHLD)) == 0) {
			if ((two = clone_(CLONE_FILES | SIGCHLD)) == 0)
				waits();
			must(write(ends_[1], &two, sizeof two));
			_exit(0);
		}
		join(middle);
		say("opened");
		waits();
	}
	must(read(ends_[0], &two, sizeof two));
	wait_for("opened");
	freeze_here();
	spoil(one = getpid(););

	expect(shared(KCMP_FILES, one, two), "the orphan has descriptors of its own");
	expect(!shared(KCMP_FILES, two, getpid()), "the first process shares descriptors");
	say("look");
	join(two);
	join(one);
}

static void signals(void) {
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	pid_t quiet = clone_(0);
	if (quiet == 0)
		waits();
	pid_t loud = clone_(SIGUSR1);
	if (loud == 0)
		waits();
	pid_t ended = clone_(SIGUSR2);
	if (ended == 0)
		_exit(3);
	siginfo_t info;
	while (sigtimedwait(&all, &info, &(struct timespec){.tv_sec = 5}) != SIGUSR2) {}
	freeze_here();
	int status = 0;
	spoil(waitpid(ended, &status, __WALL););

	same("one that is no usual child", -1, waitpid(ended, &status, 0));
	same("an ended one", ended, waitpid(ended, &status, __WCLONE));
	same("its end", 3 << 8, status);
	same("a signal that nobody has sent", -1, sigtimedwait(&all, NULL, &(struct timespec){0}));
	say("look");
	same("a quiet one", quiet, waitpid(quiet, &status, __WALL));
	same("a loud one", loud, waitpid(loud, &status, __WALL));
	same("its signal", SIGUSR1, sigtimedwait(&all, NULL, &(struct timespec){.tv_sec = 5}));
	same("no other signal", -1, sigtimedwait(&all, NULL, &(struct timespec){0}));
}

int main(__attribute__((unused)) int count, char **arguments) {
	kind = arguments[1];
	if (*kind == 'm' || *kind == 'a')
		memory(*kind == 'a' ? CLONE_SIGHAND : 0);
	else if (!strcmp(kind, "siblings"))
		siblings();
	else if (*kind == 'o')
		orphan();
	else
		signals();
	return report();
}

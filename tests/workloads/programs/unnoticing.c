/* Works, and complains if anything disturbs it: a call that is interrupted, a sleep that ends early, a wrong sum.
 * It runs until `check` is there. The argument is what it works under: threads, profile, tight or strict. */
#include "../../roundtrip/programs/seccomp.h"
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static volatile long *beats; /* in a file: the test sees who is alive */
static int go_on(void) { return access("/work/check", F_OK) != 0; }

static void *sums(void *number) {
	static char memory[2][1 << 20];
	char *mine = memory[(long)number];
	fill(mine, 1 << 20, (long)number);
	while (go_on()) {
		expect(is_filled(mine, 1 << 20, (long)number), "thread %ld: another sum", (long)number);
		beats[(long)number]++;
		expect(nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL) == 0, "a sleep: %s", strerror(errno));
	}
	return NULL;
}

static void *waits(void *number) {
	int epoll = must(epoll_create1(0));
	struct epoll_event event;
	sigset_t one; /* not blocked: sigtimedwait would change the mask that the test looks at */
	sigemptyset(&one);
	sigaddset(&one, SIGUSR2);
	for (int i = 0; go_on(); i++) {
		double start = now(CLOCK_MONOTONIC);
		long got = i % 3 == 0 ? epoll_wait(epoll, &event, 1, 30)
			: i % 3 == 1 ? syscall(SYS_rt_sigtimedwait, &one, NULL, &(struct timespec){0, 30000000}, 8)
			: syscall(SYS_futex, &(int){0}, FUTEX_WAIT, 0, &(struct timespec){0, 30000000});
		expect(i % 3 == 0 ? got == 0 : errno == (i % 3 == 1 ? EAGAIN : ETIMEDOUT), "wait %d: %ld %s", i % 3, got, strerror(errno));
		expect(now(CLOCK_MONOTONIC) - start >= 0.0299, "wait %d ended early", i % 3);
		beats[(long)number]++;
	}
	return NULL;
}

static void work(void) {
	pthread_t threads[4];
	for (long i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, i < 2 ? sums : waits, (void *)i);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

static void work_tightly(bool strict) {
	int in[2], out[2], status;
	must(pipe(in));
	must(pipe(out));
	pid_t child = must(fork());
	if (child == 0) {
		char byte = 0;
		struct sock_filter filter[] = {NUMBER, LET(SYS_read), LET(SYS_write), LET(SYS_exit), KILL};
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		if (strict)
			must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		else
			install(filter, sizeof filter / sizeof *filter, 0);
		while (syscall(SYS_read, in[0], &byte, 1) == 1 && byte == 'w') {
			beats[1]++;
			for (volatile int i = 0; i < 300000; i++) {}
			if (syscall(SYS_write, out[1], &byte, 1) != 1)
				break;
		}
		syscall(SYS_exit, byte == 'e' ? 0 : 9);
	}
	for (char byte; go_on(); beats[0]++) {
		must(write(in[1], "w", 1));
		expect(read(out[0], &byte, 1) == 1 && byte == 'w', "no echo: %s", strerror(errno));
	}
	must(write(in[1], "e", 1));
	must(waitpid(child, &status, 0));
	same("the child's status", 0, status);
}

/* Docker's profile lets most calls through and refuses these. */
static const int refused[] = {SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_userfaultfd, SYS_mount, SYS_umount2, SYS_unshare,
	SYS_setns, SYS_bpf, SYS_kcmp, SYS_personality, SYS_add_key, SYS_keyctl, SYS_perf_event_open, SYS_open_by_handle_at, SYS_clock_settime,
	SYS_pivot_root, SYS_reboot, SYS_swapon, SYS_syslog, SYS_acct, SYS_io_uring_setup, SYS_timer_create, SYS_migrate_pages, SYS_move_pages};

int main(__attribute__((unused)) int count, char **arguments) {
	struct sock_filter filter[128] = {NUMBER};
	unsigned short length = 1;
	int file = must(open("/work/beats", O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(file, 4096));
	beats = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	say("ready");
	if (!strcmp(arguments[1], "profile")) {
		for (unsigned i = 0; i < sizeof refused / sizeof *refused; i++) {
			struct sock_filter refuse[] = {REFUSE(refused[i], EPERM)};
			memcpy(filter + length, refuse, sizeof refuse);
			length += 2;
		}
		filter[length++] = (struct sock_filter)ALLOW;
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		install(filter, length, 0);
	}
	if (arguments[1][0] == 't' && arguments[1][1] == 'i')
		work_tightly(false);
	else if (arguments[1][0] == 's')
		work_tightly(true);
	else
		work();
	return report();
}

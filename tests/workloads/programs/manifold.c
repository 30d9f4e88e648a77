/* All kinds of work at once, each of which watches itself: it runs until `check` is there. */
#include "../../roundtrip/programs/wait.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { SUMS, WAITS, RINGS, PIPE, STREAM, FORKS, QUEUED, RING, PARTS };
static volatile long *beats; /* in a file: the test sees who is alive */
static volatile sig_atomic_t rung, ticked;
static int go_on(void) { return access("/work/check", F_OK) != 0; }
static void on_alarm(int signal) { (void)signal, rung++; }
static void on_tick(int signal) { (void)signal, ticked++; }
static void on_cont(int signal) { (void)signal; }

static void block(int number) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
}

/* A nap that no signal disturbs. */
static void nap(long ns) { clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = ns}, NULL); }

static void *sums(void *memory) {
	for (fill(memory, 1 << 20, 7); go_on(); beats[SUMS]++) {
		expect(is_filled(memory, 1 << 20, 7), "another sum");
		expect(nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL) == 0, "a sleep: %s", strerror(errno));
	}
	return NULL;
}

static void *waits(void *unused) {
	int epoll = must(epoll_create1(0));
	struct epoll_event event;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGUSR2);
	for (int i = 0; go_on(); i++, beats[WAITS]++) {
		double start = now(CLOCK_MONOTONIC);
		long got = i % 4 == 0 ? epoll_wait(epoll, &event, 1, 30)
			: i % 4 == 1 ? syscall(SYS_rt_sigtimedwait, &one, NULL, &(struct timespec){0, 30000000}, 8)
			: i % 4 == 2 ? poll(NULL, 0, 30)
			: syscall(SYS_futex, &(int){0}, FUTEX_WAIT, 0, &(struct timespec){0, 30000000});
		expect(i % 2 == 0 ? got == 0 : errno == (i % 4 == 1 ? EAGAIN : ETIMEDOUT), "wait %d: %ld %s", i % 4, got, strerror(errno));
		expect(now(CLOCK_MONOTONIC) - start >= 0.0299, "wait %d ended early", i % 4);
	}
	return unused;
}

/* Timers that ring into it, of the process's and of its own. */
static void rings(void) {
	timer_t timer;
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
	signal(SIGALRM, on_alarm);
	signal(SIGRTMIN, on_tick);
	must(setitimer(ITIMER_REAL, &(struct itimerval){{0, 7000}, {0, 7000}}, NULL));
	must(timer_create(CLOCK_MONOTONIC, &event, &timer));
	must(timer_settime(timer, 0, &(struct itimerspec){{0, 9000000}, {0, 9000000}}, NULL));
	for (; go_on(); beats[RINGS]++) {
		int before = rung, then = ticked;
		expect(eventually(rung > before && ticked > then), "a timer rings no more");
	}
}

static void pour(int which, int into) {
	for (uint64_t block[1024], number = 0;; number++) {
		for (int i = 0; i < 1024; i++)
			block[i] = number + i;
		ssize_t done = write(into, block, sizeof block);
		if (!go_on()) /* nobody reads any more */
			return;
		expect(done == sizeof block, "flow %d: %ld written: %s", which, done, strerror(errno));
	}
}

/* A child writes into what is nearly always full. */
static void flow(int which, int from, int into) {
	pid_t child = must(fork());
	signal(SIGPIPE, SIG_IGN);
	if (child == 0) {
		close(from);
		pour(which, into);
		_exit(0);
	}
	close(into);
	for (uint64_t block[1024], number = 0; go_on(); number++, beats[which]++) {
		for (size_t have = 0; have < sizeof block;) {
			ssize_t got = must(read(from, (char *)block + have, sizeof block - have));
			expect(got > 0, "flow %d ended", which);
			have += got;
		}
		for (int i = 0; i < 1024; i++)
			expect(block[i] == number + i, "flow %d: word %d of block %lu", which, i, number);
		nap(500000);
	}
	close(from);
	join(child);
}

static void flow_by_pipe(void) {
	int ends[2];
	must(pipe(ends));
	flow(PIPE, ends[0], ends[1]);
}

static void flow_by_connection(void) {
	struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof where;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), client = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(listener, (struct sockaddr *)&where, sizeof where));
	must(listen(listener, 1));
	must(getsockname(listener, (struct sockaddr *)&where, &length));
	must(connect(client, (struct sockaddr *)&where, length));
	int server = must(accept(listener, NULL, NULL));
	close(listener);
	flow(STREAM, server, client);
}

static void forks(void) {
	for (int i = 0; go_on(); i = (i + 1) % 100, beats[FORKS]++) {
		pid_t child = must(fork());
		int status;
		if (child == 0) {
			nap(1000000);
			_exit(i);
		}
		same("who has ended", child, waitpid(child, &status, 0));
		same("how it ended", i << 8, status);
		nap(3000000);
	}
}

/* Signals that queue, each with its number. */
static void queue(void) {
	block(SIGRTMIN + 1);
	pid_t receiver = getpid(), sender = must(fork());
	for (int i = 0; sender == 0; i++) { /* its parent ends it */
		while (sigqueue(receiver, SIGRTMIN + 1, (union sigval){.sival_int = i}) != 0)
			nap(1000000);
		nap(2000000);
	}
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 1);
	for (int i = 0; go_on(); i++, beats[QUEUED]++) {
		siginfo_t told;
		same("a queued signal", SIGRTMIN + 1, sigwaitinfo(&one, &told));
		same("its number", i, told.si_value.sival_int);
	}
	must(kill(sender, SIGKILL));
}

/* Timeouts of io_uring's, waited for. */
static void ring(void) {
	struct io_uring_params params = {0};
	int fd = must(syscall(SYS_io_uring_setup, 4, &params));
	int shared = PROT_READ | PROT_WRITE;
	char *rings = must(mmap(NULL, 4096, shared, MAP_SHARED, fd, IORING_OFF_SQ_RING));
	struct io_uring_sqe *entries = must(mmap(NULL, 4096, shared, MAP_SHARED, fd, IORING_OFF_SQES));
	struct io_uring_cqe *done = (void *)(rings + params.cq_off.cqes);
	unsigned *tail = (void *)(rings + params.sq_off.tail), *head = (void *)(rings + params.cq_off.head);
	unsigned *array = (void *)(rings + params.sq_off.array), *came = (void *)(rings + params.cq_off.tail);
	struct { int64_t s, ns; } time = {0, 5000000};
	for (uint64_t i = 1; go_on(); i++, beats[RING]++) {
		unsigned slot = *tail & (params.sq_entries - 1);
		entries[slot] = (struct io_uring_sqe){.opcode = IORING_OP_TIMEOUT, .addr = (uintptr_t)&time, .len = 1, .user_data = i};
		array[slot] = slot;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		long got = syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		expect(got == 1, "io_uring_enter: %ld %s", got, strerror(errno));
		while (*head == __atomic_load_n(came, __ATOMIC_ACQUIRE)) {
			got = syscall(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
			expect(got == 0, "io_uring_enter: %ld %s", got, strerror(errno));
		}
		same("what came", *head + 1, __atomic_load_n(came, __ATOMIC_ACQUIRE));
		struct io_uring_cqe *one = &done[*head & (params.cq_entries - 1)];
		same("its number", i, one->user_data);
		same("its result", -ETIME, one->res);
		__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	}
}

static pid_t begin(void (*part)(void)) {
	pid_t child = must(fork());
	if (child == 0) {
		part();
		_exit(0);
	}
	return child;
}

/* One that is stopped, and that a signal waits for, until it may go on. */
static pid_t stop(int waiting, int block_it) {
	int status;
	pid_t child = must(fork());
	if (child == 0) {
		signal(SIGUSR1, on_alarm);
		signal(SIGCONT, on_cont);
		block(SIGHUP);
		if (block_it)
			block(waiting);
		must(raise(SIGSTOP));
		_exit(rung ? 11 : 10);
	}
	same("who stops", child, waitpid(child, &status, WUNTRACED));
	expect(WIFSTOPPED(status), "it ended instead of stopping");
	must(kill(child, waiting));
	return child;
}

static void is_stopped_still(pid_t child) {
	int status;
	same("a stopped one that ended", 0, waitpid(child, &status, WNOHANG | WUNTRACED | WCONTINUED));
}

int main(int count, char **arguments) {
	static char memory[1 << 20];
	void (*parts[])(void) = {rings, flow_by_pipe, flow_by_connection, forks, queue, ring};
	enum { CHILDREN = sizeof parts / sizeof *parts };
	pid_t children[CHILDREN], stopped[3];
	int is_ringless = count > 1 && !strcmp(arguments[1], "ringless"), begun = CHILDREN - is_ringless, status;
	int file = must(open("/work/beats", O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(file, 4096));
	beats = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	close(file);
	must(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
	for (int i = 0; i < begun; i++)
		children[i] = begin(parts[i]);
	stopped[0] = stop(SIGTERM, 0);
	stopped[1] = stop(SIGUSR1, 0);
	stopped[2] = stop(SIGTERM, 1);
	pthread_t threads[2];
	pthread_create(&threads[0], NULL, sums, memory);
	pthread_create(&threads[1], NULL, waits, NULL);
	say("ready");
	while (go_on()) {
		for (int i = 0; i < 3; i++)
			is_stopped_still(stopped[i]);
		nap(5000000);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < begun; i++)
		join(children[i]);
	int ends[] = {SIGTERM, 11 << 8, 10 << 8};
	for (int i = 0; i < 3; i++) {
		must(kill(stopped[i], SIGCONT));
		same("the stopped one that ended", stopped[i], waitpid(stopped[i], &status, 0));
		same("how the stopped one ended", ends[i], status);
	}
	return report();
}

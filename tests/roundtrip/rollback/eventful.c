/* A program in which much happens that a rollback has to undo: it says "changed" when it has. */
#include "../programs/memory.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static int words, counter, timer, epoll, highest;
static volatile int handled;
static void *heap;
static bool in_handler; /* on an alternate stack: nobody may set one who is on one */
static char start_name[16], start_directory[64];
static timer_t posix;

static void handler(int number) { handled += number; }

__attribute__((noreturn)) static void *sleeps(void *unused) {
	(void)unused;
	for (;;)
		pause();
}

static int count_of(const char *directory) {
	char command[64];
	int count = 0;
	snprintf(command, sizeof command, "/proc/self/%s", directory);
	int fd = must(open(command, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	char buffer[8192];
	long got;
	while ((got = must(syscall(SYS_getdents64, fd, buffer, sizeof buffer))) > 0)
		for (long at = 0; at < got; at += *(unsigned short *)(buffer + at + 16))
			count++;
	close(fd);
	return count;
}

static void change(void) {
	must(lseek(words, 3, SEEK_SET));
	must(eventfd_write(counter, 77));
	must(timerfd_settime(timer, 0, &(struct itimerspec){.it_value.tv_nsec = 1}, NULL));
	must(dup(words));
	int other = must(open("/proc/self/maps", O_RDONLY));
	must(fcntl(other, F_DUPFD, 500));
	int pipes[2];
	must(pipe(pipes));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &(struct epoll_event){.events = EPOLLIN}));
	must(epoll_ctl(epoll, EPOLL_CTL_MOD, counter, &(struct epoll_event){.events = EPOLLOUT, .data.u32 = 9}));
	must(epoll_ctl(epoll, EPOLL_CTL_DEL, timer, NULL));
	must(fcntl(words, F_SETFD, 0));
	pthread_t thread;
	for (int i = 0; i < 3; i++)
		must(pthread_create(&thread, NULL, sleeps, NULL));
	for (int i = 0; i < 3; i++) {
		pid_t child = must(fork());
		if (child == 0) {
			if (i == 1)
				_exit(3);
			if (i == 2)
				must(fork());
			sleeps(NULL);
		}
	}
	must((long)sbrk(1 << 20));
	memset(anonymous(1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE), 7, 1 << 20);
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, handler);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(kill(getpid(), SIGUSR2));
	must(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 5}));
	must(setitimer(ITIMER_REAL, &(struct itimerval){.it_value.tv_sec = 1}, NULL));
	must(timer_settime(posix, 0, &(struct itimerspec){.it_value.tv_sec = 1}, NULL));
	timer_t another;
	must(timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_signo = SIGKILL}, &another));
	must(timer_settime(another, 0, &(struct itimerspec){.it_value.tv_sec = 1}, NULL));
	must(chdir("/proc"));
	umask(0);
	must(prctl(PR_SET_NAME, "another"));
	stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};
	if (!in_handler)
		must(sigaltstack(&stack, NULL));
	must(sethostname("elsewhere", 9));
	must(unlink("/dev/shm/kept"));
	int file = must(open("/dev/shm/new", O_WRONLY | O_CREAT, 0600));
	must(write(file, "new", 3));
	file = must(open("/dev/shm/written", O_WRONLY));
	must(write(file, "something else", 14));
	must(fchmod(file, 0));
}

static void put(const char *path, const char *text) {
	int file = must(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
	must(write(file, text, strlen(text)));
	close(file);
}

static bool holds(const char *path, const char *text) {
	char found[64] = "";
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = read(file, found, sizeof found - 1);
	close(file);
	return got == (ssize_t)strlen(text) && !strcmp(found, text);
}

static void check(void) {
	same("position", 5, lseek(words, 0, SEEK_CUR));
	same("close-on-exec", FD_CLOEXEC, fcntl(words, F_GETFD));
	eventfd_t value = 0;
	must(eventfd_read(counter, &value));
	same("counter", 3, value);
	struct itimerspec left;
	must(timerfd_gettime(timer, &left));
	expect(left.it_value.tv_sec > 900, "timerfd: %ld s are left", left.it_value.tv_sec);
	must(timer_gettime(posix, &left));
	expect(left.it_value.tv_sec == 0, "POSIX timer: armed");
	struct itimerval interval;
	must(getitimer(ITIMER_REAL, &interval));
	expect(interval.it_value.tv_sec == 0 && interval.it_value.tv_usec == 0, "setitimer: armed");
	same("descriptors", highest, count_of("fd"));
	same("threads", 3, count_of("task"));
	struct epoll_event events[4];
	must(eventfd_write(counter, 1));
	int ready = must(epoll_wait(epoll, events, 4, 0));
	expect(ready == 1 && events[0].data.u32 == 1 && events[0].events == EPOLLIN, "epoll: %d ready", ready);
	must(timerfd_settime(timer, TFD_TIMER_ABSTIME, &(struct itimerspec){.it_value.tv_nsec = 1}, NULL));
	expect(must(epoll_wait(epoll, events, 4, 1000)) == 2, "epoll: the timer isn't watched");
	same("children", -1, waitpid(-1, NULL, WNOHANG));
	expect(errno == ECHILD, "children: %s", strerror(errno));
	expect(sbrk(0) == heap, "heap: ends at %p, not %p", sbrk(0), heap);
	struct sigaction action;
	sigaction(SIGUSR1, NULL, &action);
	expect(action.sa_handler == handler, "SIGUSR1: another action");
	sigaction(SIGUSR2, NULL, &action);
	expect(action.sa_handler == SIG_DFL, "SIGUSR2: an action");
	sigset_t set;
	sigpending(&set);
	expect(!sigismember(&set, SIGUSR2) && !sigismember(&set, SIGCHLD), "signals wait");
	expect(sigismember(&set, SIGRTMIN), "a signal no longer waits");
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	siginfo_t information;
	must(sigwaitinfo(&set, &information));
	same("payload", 4, information.si_value.sival_int);
	expect(sigtimedwait(&set, &information, &(struct timespec){0}) == -1, "another signal waits");
	char directory[64], name[16];
	must((long)getcwd(directory, sizeof directory));
	expect(!strcmp(directory, start_directory), "directory: %s", directory);
	same("umask", 022, umask(0));
	must(prctl(PR_GET_NAME, name));
	expect(!strcmp(name, start_name), "name: %s", name);
	stack_t stack;
	must(sigaltstack(NULL, &stack));
	expect(stack.ss_flags == (in_handler ? SS_ONSTACK : SS_DISABLE), "an alternate stack");
	must(gethostname(directory, sizeof directory));
	expect(strcmp(directory, "elsewhere"), "host name: %s", directory);
	same("handled", 0, handled);
	expect(holds("/dev/shm/kept", "kept"), "a file that was removed");
	expect(holds("/dev/shm/written", "written"), "a file that was written to");
	expect(access("/dev/shm/new", F_OK) == -1, "a file that was made");
	struct stat written;
	must(stat("/dev/shm/written", &written));
	same("mode", 0644, written.st_mode & 0777);
}

static void live(int unused) {
	(void)unused;
	bool has_changed = false;
	say("ready");
	while (access(in_work("check"), F_OK) != 0) {
		if (!has_changed && access(in_work("change"), F_OK) == 0) {
			change();
			has_changed = true;
			say("changed");
		}
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
	check();
}

int main(int count, char **arguments) {
	(void)arguments;
	static char stack[1 << 18];
	umask(022);
	words = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	must(lseek(words, 5, SEEK_SET));
	counter = must(eventfd(3, EFD_CLOEXEC | EFD_NONBLOCK));
	timer = must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	must(timerfd_settime(timer, 0, &(struct itimerspec){.it_value.tv_sec = 1000}, NULL));
	must(timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_signo = SIGKILL}, &posix));
	epoll = must(epoll_create1(EPOLL_CLOEXEC));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &(struct epoll_event){.events = EPOLLIN, .data.u32 = 1}));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &(struct epoll_event){.events = EPOLLIN, .data.u32 = 2}));
	signal(SIGUSR1, handler);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 4}));
	put("/dev/shm/kept", "kept");
	put("/dev/shm/written", "written");
	must(prctl(PR_GET_NAME, start_name));
	must((long)getcwd(start_directory, sizeof start_directory));
	free(malloc(1000));
	heap = sbrk(0);
	highest = count_of("fd");
	in_handler = count > 1;
	if (!in_handler) {
		live(0);
		return report();
	}
	must(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL));
	must(sigaction(SIGURG, &(struct sigaction){.sa_handler = live, .sa_flags = SA_ONSTACK}, NULL));
	must(raise(SIGURG));
	return report();
}

/* A process whose first thread has ended, by a status of its own and with another user's rights, while others live on: the first
 * process of the container, and a child that is stopped and that somebody waits for. */
// arguments: | filtered
// feature: pidfd_thread
// capabilities: CAP_SETUID
#include "seccomp.h"
#include "wait.h"

static sigset_t usr1;

static char state_of(pid_t pid, pid_t tid) {
	char path[64], text[512] = "";
	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	int stat = open(path, O_RDONLY);
	if (stat < 0)
		return 0;
	ssize_t got = read(stat, text, sizeof text - 1);
	close(stat);
	return got > 0 ? strrchr(text, ')')[2] : 0;
}

static void *idles(__attribute__((unused)) void *nothing) {
	pause();
	return NULL;
}

static bool has(const char *file, const char *what) {
	char text[4096] = "";
	int fd = must(open(file, O_RDONLY));
	must(read(fd, text, sizeof text - 1));
	close(fd);
	return strstr(text, what) != NULL;
}

static void *lives_on(void *filtered) {
	char path[64];
	while (state_of(getpid(), getpid()) != 'Z')
		usleep(1000);
	int tid = gettid();
	pthread_t more;
	must(mkdir(in_work("there"), 0755));
	must(chdir(in_work("there")));
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0644));
	int shared = must(memfd_create("shared", 0));
	must(ftruncate(shared, 4096));
	int *there = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0));
	*there = 4711;
	if (filtered) { /* one that doesn't allow a thread's end */
		struct sock_filter rules[] = {NUMBER, BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 0, 1), KILL, ALLOW};
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		install(rules, sizeof rules / sizeof *rules, 0);
	}
	must(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 99}));

	pid_t child = must(fork());
	if (child == 0) {
		must(pthread_create(&more, NULL, idles, NULL));
		must(kill(getpid(), SIGSTOP));
		filtered ? _exit(8) : (void)syscall(SYS_exit, 7);
	}
	int status;
	must(waitpid(child, &status, WUNTRACED));

	freeze_here();
	spoil(tid = 0; *there = 0;);

	same("the thread's id", tid, gettid());
	expect(state_of(getpid(), getpid()) == 'Z', "the first thread is %c", state_of(getpid(), getpid()));
	same("what is in shared memory", 4711, *there);
	snprintf(path, sizeof path, "/proc/%d/task/%d/status", getpid(), getpid());
	expect(has(path, "Name:\tgone"), "the first thread has another name");
	expect(has(path, "Uid:\t0\t77\t77\t77"), "the first thread is another user");
	same("what descriptor 'file' is", 4, write(file, "text", 4));
	must(getcwd(path, sizeof path));
	expect(!strcmp(path, in_work("there")), "the directory is %s", path);
	siginfo_t info = {0};
	same("the queued signal", SIGUSR1, sigtimedwait(&usr1, &info, &(struct timespec){0}));
	same("its value", 99, info.si_value.sival_int);
	must(pthread_create(&more, NULL, idles, NULL));

	/* The child's first thread ends now; then the process is killed. */
	must(kill(child, SIGCONT));
	if (!filtered) {
		while (state_of(child, child) != 'Z')
			usleep(1000);
		same("a child that lives on", 0, waitpid(child, &status, WNOHANG));
		must(kill(child, SIGKILL));
	}
	same("the child", child, waitpid(child, &status, 0));
	same("the child's end", filtered ? 8 << 8 : SIGKILL, status);
	exit(report());
}

int main(int count, __attribute__((unused)) char **arguments) {
	pthread_t other;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	must(pthread_create(&other, NULL, lives_on, count > 1 ? "yes" : NULL));
	must(syscall(SYS_setresuid, -1, 77, -1)); /* this thread alone */
	must(syscall(SYS_setresuid, -1, -1, 77));
	must(prctl(PR_SET_NAME, "gone"));
	syscall(SYS_exit, 3);
}

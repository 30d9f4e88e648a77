/* Files of processes in /proc: of itself, of a child, of a thread, of one that has ended; settings; its mounts in an epoll; a namespace; O_PATH of all sorts. */
#include "wait.h"
#include <poll.h>
#include <sys/epoll.h>

static void begins(int file, off_t at, const char *expected) {
	char text[256] = "";
	must(pread(file, text, sizeof text - 1, at));
	expect(!strncmp(text, expected, strlen(expected)), "instead of %s it has %.20s", expected, text);
}

int main(void) {
	char path[64], text[256] = "", stat_of_child[32];
	struct stat before, after;
	struct epoll_event event = {.events = EPOLLERR | EPOLLPRI};
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		_exit(0);
	}
	pid_t dead = must(fork());
	if (dead == 0) {
		wait_for("end");
		_exit(0);
	}
	snprintf(path, sizeof path, "/proc/%d/status", dead);
	int of_dead = must(open(path, O_RDONLY));
	snprintf(path, sizeof path, "/proc/%d", dead);
	int dead_directory = must(open(path, O_RDONLY | O_DIRECTORY));
	say("end");
	must(waitpid(dead, NULL, 0));
	int maps = must(open("/proc/self/maps", O_RDONLY | O_CLOEXEC)), status = must(open("/proc/self/status", O_RDONLY));
	must(read(status, text, 6));
	int memory = must(open("/proc/self/mem", O_RDWR)), directory = must(open("/proc/self", O_RDONLY | O_DIRECTORY));
	snprintf(path, sizeof path, "/proc/%d/stat", child);
	snprintf(stat_of_child, sizeof stat_of_child, "%d (", child);
	int of_child = must(open(path, O_RDONLY));
	int mounts = must(open("/proc/self/mountinfo", O_RDONLY)), epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, mounts, &event));
	int thread = must(open("/proc/thread-self/comm", O_RDWR)), host = must(open("/proc/sys/kernel/hostname", O_RDONLY));
	int net = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)), tcp = must(open("/proc/net/tcp", O_RDONLY));
	const char *settings[] = {"kernel/pid_max", "kernel/shmmax", "net/ipv4/conf/lo/forwarding", "net/core/somaxconn", "user/max_uts_namespaces"};
	int values[sizeof settings / sizeof *settings];
	for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
		snprintf(path, sizeof path, "/proc/sys/%s", settings[i]);
		values[i] = must(open(path, O_RDONLY));
	}
	/* Who looks for it again makes the first forget its name. */
	int tcp_again = must(open("/proc/net/tcp", O_RDONLY)), own_tcp = must(open("/proc/thread-self/net/tcp", O_RDONLY));
	close(tcp_again);
	close(must(open("/proc/thread-self/net/tcp", O_RDONLY)));
	must(fstat(net, &before));
	must(symlink("nowhere", in_work("symlink")));
	must(mkfifo(in_work("fifo"), 0600));
	int paths[] = {
		must(open(in_work("symlink"), O_PATH | O_NOFOLLOW)), must(open(in_work("fifo"), O_PATH)),
		must(open("/dev/null", O_PATH)), must(open("/proc/self/exe", O_PATH | O_NOFOLLOW)), must(open("/proc/self", O_PATH)),
	};
	mode_t modes[sizeof paths / sizeof *paths];
	for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
		must(fstat(paths[i], &after));
		modes[i] = after.st_mode;
	}

	freeze_here();
	spoil(must(dup2(status, of_child)););

	begins(of_child, 0, stat_of_child);
	begins(status, 0, "Name:\tproc_files");
	same("position", 6, lseek(status, 0, SEEK_CUR));
	same("close-on-exec", FD_CLOEXEC, fcntl(maps, F_GETFD));
	same("reading maps", 1, read(maps, text, sizeof text) > 0);
	volatile long number = 12345;
	long found = 0;
	same("reading memory", 8, pread(memory, &found, 8, (off_t)&number));
	same("what is there", 12345, found);
	found = 54321;
	same("writing memory", 8, pwrite(memory, &found, 8, (off_t)&number));
	same("what is there then", 54321, number);
	same("a file in its directory", 0, faccessat(directory, "status", F_OK, 0));
	expect(faccessat(dead_directory, "status", F_OK, 0) == -1, "the directory of the dead one has a status");
	expect(pread(of_dead, text, sizeof text, 0) == -1 && errno == ESRCH, "the dead one has a status");
	same("mounts that change", 0, epoll_wait(epoll, &event, 1, 0));
	same("reading mounts", 1, pread(mounts, text, sizeof text, 0) > 0);
	same("naming the thread", 4, write(thread, "frog", 4));
	begins(host, 0, "frog\n");
	begins(tcp, 0, "  sl ");
	for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
		snprintf(path, sizeof path, "/proc/sys/%s", settings[i]);
		int anew = must(open(path, O_RDONLY));
		text[must(pread(anew, text, sizeof text - 1, 0))] = 0;
		begins(values[i], 0, text);
		close(anew);
	}
	begins(own_tcp, 0, "  sl ");
	must(stat("/proc/self/ns/net", &after));
	must(fstat(net, &before));
	same("the namespace", after.st_ino, before.st_ino);
	for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
		must(fstat(paths[i], &after));
		same("mode of an O_PATH file", modes[i], after.st_mode);
	}
	same("the symbolic link", 7, readlinkat(paths[0], "", text, sizeof text));
	same("the program's link", 1, readlinkat(paths[3], "", text, sizeof text) > 0);
	join(child);
	return report();
}

/* Namespaces in which nobody is: they are kept by descriptors, or by sockets alone. */
// arguments: uts | ipc | net | mnt | cgroup | pid | ended | future | time
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_NET_ADMIN CAP_SYS_TIME
#include "namespaces.h"
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/socket.h>

#define SIOCGSKNS 0x894c

static int flag_of(const char *kind) {
	return !strcmp(kind, "uts") ? CLONE_NEWUTS : !strcmp(kind, "ipc") ? CLONE_NEWIPC : !strcmp(kind, "net") ? CLONE_NEWNET
		: !strcmp(kind, "mnt") ? CLONE_NEWNS : CLONE_NEWCGROUP;
}

static ino_t identity(int file) {
	struct stat found;
	must(fstat(file, &found));
	return found.st_ino;
}

/* Those of pids, with a process or without any more, and of time come with processes. */
static int with_processes(const char *kind) {
	bool time = *kind == 't';
	char path[40];
	int home = must(open(time ? "/proc/self/ns/time" : "/proc/self/ns/pid", O_RDONLY | O_CLOEXEC));
	must(unshare(time ? CLONE_NEWTIME : CLONE_NEWPID));
	if (time) {
		int file = must(open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
		must(write(file, "monotonic 5000000 0\n", 20)), close(file);
	}
	pid_t child = must(fork());
	if (child == 0)
		pause(), _exit(0);
	sprintf(path, "/proc/%d/ns/%s", child, time ? "time" : "pid");
	int held = must(open(path, O_RDONLY)), again = must(open(path, O_RDONLY));
	bool stays = *kind == 'f'; /* its children would be there */
	if (!stays)
		must(setns(home, 0));
	if (*kind != 'p')
		kill(child, SIGKILL), waitpid(child, NULL, 0);
	freeze_here();
	spoil(must(dup2(home, again)););
	expect(identity(held) == identity(again), "two files of one namespace are of two");
	expect(identity(home) != identity(held), "the namespace is the container's own");
	if (*kind == 'p') {
		int now = must(open(path, O_RDONLY));
		expect(identity(now) == identity(held), "the namespace is not that of the process in it");
	}
	if (!stays)
		must(setns(held, 0));
	pid_t born = fork();
	if (born == 0)
		_exit(time ? now(CLOCK_MONOTONIC) < 5000000 : 0);
	expect((born < 0) == (*kind == 'e' || stays), "a child is born there: %d", born);
	if (born > 0)
		join(born);
	kill(child, SIGKILL);
	return report();
}

int main(int count, char **arguments) {
	const char *kind = arguments[count - 1];
	if (strchr("petf", *kind))
		return with_processes(kind);
	int flag = flag_of(kind);
	char path[40];
	sprintf(path, "/proc/self/ns/%s", kind);
	int home = must(open(path, O_RDONLY | O_CLOEXEC));
	must(unshare(flag));
	int held = must(open(path, O_RDONLY)), again = must(open(path, O_RDONLY));
	if (flag == CLONE_NEWUTS)
		must(sethostname("held", 4));
	if (flag == CLONE_NEWIPC)
		must(shmget(0x77, 4096, IPC_CREAT | 0600));
	if (flag == CLONE_NEWNS)
		must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)), must(mount("held", "/tmp", "tmpfs", 0, "")), close(must(creat("/tmp/held", 0600)));
	must(setns(home, flag));
	int socket_of = -1;
	if (flag == CLONE_NEWNET) { /* one that only a socket keeps */
		must(unshare(flag));
		socket_of = must(socket(AF_INET, SOCK_DGRAM, 0));
		must(setns(home, flag));
	}
	freeze_here();
	spoil(must(dup2(home, again)););
	expect(identity(held) == identity(again), "two files of one namespace are of two");
	expect(identity(home) != identity(held), "the namespace is the container's own");
	int now = must(open(path, O_RDONLY));
	expect(identity(home) == identity(now), "the container's own is another");
	if (socket_of >= 0) {
		int of = must(ioctl(socket_of, SIOCGSKNS));
		expect(identity(of) != identity(home) && identity(of) != identity(held), "the socket's is another's");
	}
	must(setns(held, flag));
	if (flag == CLONE_NEWUTS) {
		char name[65];
		must(gethostname(name, sizeof name));
		expect(!strcmp(name, "held"), "it is %s there", name);
	}
	if (flag == CLONE_NEWIPC)
		expect(shmget(0x77, 0, 0) >= 0, "no memory there");
	if (flag == CLONE_NEWNS)
		expect(access("/tmp/held", F_OK) == 0, "no file there");
	must(setns(home, flag));
	return report();
}

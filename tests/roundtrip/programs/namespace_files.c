/* Namespaces in which nobody is: they are kept by descriptors, or by sockets alone. */
// arguments: uts | ipc | net | mnt | cgroup
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_NET_ADMIN
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

int main(int count, char **arguments) {
	const char *kind = arguments[count - 1];
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

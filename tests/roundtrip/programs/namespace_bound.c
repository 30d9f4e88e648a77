/* Namespaces that nobody is in, but that are bound to files, as `ip netns` has them. */
// arguments: ip | kinds | nested | exec | copy
// capabilities: CAP_SYS_ADMIN CAP_NET_ADMIN CAP_SYS_CHROOT
#include "mounts.h"
#include "namespaces.h"
#include "network.h"

static struct world was, is;
static struct mounts mounted, now_mounted;

static void in(const char *path, int *own) {
	*own = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	int there = must(open(path, O_RDONLY | O_CLOEXEC));
	must(setns(there, CLONE_NEWNET));
	close(there), close_routing();
}

static void back(int own) { close_routing(), must(setns(own, CLONE_NEWNET)), close(own); }

/* Bind a namespace of a kind that a child makes, and leaves. */
static void bind_new(int flag, const char *kind, const char *path) {
	char link[64], byte;
	int made[2], leave[2];
	must(pipe(made)), must(pipe(leave));
	close(must(open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0)));
	pid_t child = must(fork());
	if (child == 0) {
		must(unshare(flag));
		if (flag == CLONE_NEWUTS)
			must(sethostname("bound", 5));
		must(write(made[1], "x", 1)), must(read(leave[0], &byte, 1));
		_exit(0);
	}
	must(read(made[0], &byte, 1));
	sprintf(link, "/proc/%d/ns/%s", child, kind);
	must(mount(link, path, NULL, MS_BIND, NULL));
	must(write(leave[1], "x", 1)), join(child);
	close(made[0]), close(made[1]), close(leave[0]), close(leave[1]);
}

/* What `ip netns add` does. */
static void add(const char *path) {
	must(mkdir("/run/netns", 0755) == 0 || errno == EEXIST ? 0 : -1);
	if (mount(NULL, "/run/netns", NULL, MS_SHARED | MS_REC, NULL)) {
		must(mount("/run/netns", "/run/netns", NULL, MS_BIND | MS_REC, NULL));
		must(mount(NULL, "/run/netns", NULL, MS_SHARED | MS_REC, NULL));
	}
	bind_new(CLONE_NEWNET, "net", path);
}

static void pair_into(const char *name, const char *peer, const char *path) {
	int file = must(open(path, O_RDONLY | O_CLOEXEC));
	new_link(name, "veth", 0);
	struct nlattr *other = nest(VETH_INFO_PEER);
	struct ifinfomsg head = {0};
	memcpy((char *)&request + request.head.nlmsg_len, &head, sizeof head);
	request.head.nlmsg_len += sizeof head;
	put_text(IFLA_IFNAME, peer), put32(IFLA_NET_NS_FD, file);
	end(other), made();
	close(file);
}

/* A device has its own address a moment after its carrier. */
static void await_address(const char *name) {
	for (bool there = false; !there; nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL)) {
		char device[32];
		FILE *file = fopen("/proc/self/net/if_inet6", "r");
		while (fscanf(file, "%*s %*x %*x %*x %*x %31s", device) == 1)
			there |= !strcmp(device, name);
		fclose(file);
	}
	settle();
}

static void furnish(const char *path) {
	int own;
	pair_into("out", "in", path);
	up("out"), address("out", "10.0.7.1", 24), ask();
	in(path, &own);
	up("lo"), up("in"), address("in", "10.0.7.2", 24), ask();
	route("0.0.0.0", 0, RTN_UNICAST, RT_TABLE_MAIN), put_ip(RTA_GATEWAY, "10.0.7.1"), ask();
	await_address("in"), read_world(&was);
	back(own);
}

static void check_furnished(const char *path) {
	int own;
	in(path, &own);
	read_world(&is);
	for (int i = 0; i < 2; i++)
		for (int line = 0; line < (i ? &is : &was)->count; line++) {
			char *number = strstr((i ? &is : &was)->lines[line], " 37=");
			if (number) /* the kernel's number for the other namespace may be another */
				memset(number, '_', 12);
		}
	expect_same_world(&was, &is);
	back(own);
}

static bool is_own(const char *kind, const char *path) {
	char own[64];
	struct stat one, other;
	sprintf(own, "/proc/self/ns/%s", kind);
	must(stat(own, &one)), must(stat(path, &other));
	return one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

/* Mount points are compared, but not the numbers of namespaces. */
static void look_at_mounts(struct mounts *into) {
	read_mounts(into);
	for (int i = 0; i < into->count; i++)
		for (char *at = into->lines[i]; (at = strstr(at, ":[40")); at++)
			memset(at + 2, '_', 10);
	qsort(into->lines, into->count, sizeof into->lines[0], by_text);
}

int main(int count, char **arguments) {
	const char *what = arguments[count - 1], *bound = "/run/netns/x";
	pid_t child = 0;
	umask(0022);
	must(mkdir("/run", 0755) == 0 || errno == EEXIST ? 0 : -1);
	int file = -1;
	if (strchr("iec", what[0])) {
		add(bound), furnish(bound);
		file = must(open(bound, O_RDONLY | O_CLOEXEC));
	} else if (what[0] == 'k') {
		bind_new(CLONE_NEWUTS, "uts", "/run/uts"), bind_new(CLONE_NEWIPC, "ipc", "/run/ipc");
		bind_new(CLONE_NEWCGROUP, "cgroup", "/run/cgroup"), bind_new(CLONE_NEWUSER, "user", "/run/user");
		close(must(open("/run/own", O_RDONLY | O_CREAT | O_CLOEXEC, 0)));
		must(mount("/proc/self/ns/uts", "/run/own", NULL, MS_BIND, NULL));
		close(must(open("/run/again", O_RDONLY | O_CREAT | O_CLOEXEC, 0)));
		must(mount("/run/uts", "/run/again", NULL, MS_BIND, NULL));
	}
	if (strchr("nec", what[0])) { /* a mount namespace that has it, too; an exact copy, or a changed one */
		child = must(fork());
		if (child == 0) {
			int own;
			if (what[0] == 'e') /* as `ip netns exec` */
				in(bound, &own), close(own), close_routing();
			must(unshare(CLONE_NEWNS));
			if (what[0] != 'c')
				must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
			if (what[0] == 'n')
				must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)), bind_new(CLONE_NEWUTS, "uts", "/run/uts");
			look_at_mounts(&mounted);
			say("child-ready"), wait_for("check");
			look_at_mounts(&now_mounted), expect_same_mounts(&mounted, &now_mounted);
			if (what[0] == 'e')
				expect(is_own("net", bound), "who was in the bound namespace is in another");
			else if (what[0] == 'c')
				check_furnished(bound);
			else
				expect(!is_own("uts", "/run/uts"), "a namespace has become the container's");
			_exit(0);
		}
		wait_for("child-ready");
	}
	look_at_mounts(&mounted);
	freeze_here();
	spoil(
		int own;
		if (file >= 0)
			in(bound, &own), address("in", "10.66.0.1", 32), ask(), back(own);
		else
			must(umount2(what[0] == 'k' ? "/run/again" : "/tmp", MNT_DETACH));
	);
	look_at_mounts(&now_mounted), expect_same_mounts(&mounted, &now_mounted);
	if (strchr("iec", what[0])) {
		check_furnished(bound);
		struct stat one, other;
		must(fstat(file, &one)), must(stat(bound, &other));
		expect(one.st_ino == other.st_ino, "the open file is another namespace");
	} else if (what[0] == 'k') {
		char name[65] = "";
		expect(is_own("uts", "/run/own"), "its own namespace is another");
		for (int i = 0; i < 5; i++) {
			const char *kind = (const char *[]){"uts", "ipc", "cgroup", "user"}[i & 3];
			sprintf(name, "/run/%s", i == 4 ? "again" : kind);
			expect(!is_own(kind, name), "%s is the container's own", name);
		}
		int there = must(open("/run/uts", O_RDONLY | O_CLOEXEC));
		must(setns(there, CLONE_NEWUTS)), must(gethostname(name, 64));
		expect(!strcmp(name, "bound"), "the host is %s", name);
		expect(is_own("uts", "/run/again"), "two mounts of one namespace show two");
	}
	if (child)
		join(child);
	return report();
}

/* Settings of the kernel that were changed in the container's own ipc, network and pid namespaces. */
// capabilities: CAP_SYS_ADMIN CAP_NET_ADMIN CAP_SYS_RESOURCE
#include "wait.h"
#include <sys/utsname.h>

static const char *const changes[][2] = {
	{"kernel/shmmax", "12345678"},
	{"kernel/sem", "250\t32000\t32\t77"},
	{"kernel/msgmnb", "10000"},
	{"fs/mqueue/msg_max", "7"},
	{"net/ipv4/ip_local_port_range", "20000\t30000"},
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv4/tcp_keepalive_time", "77"},
	{"net/ipv4/conf/all/arp_ignore", "1"},
	{"net/ipv4/conf/lo/forwarding", "0"},
	{"net/core/somaxconn", "99"},
	{"net/ipv4/tcp_base_mss", "777"},
	{"net/ipv4/icmp_ratelimit", "200"},
	{"net/ipv4/fib_multipath_hash_policy", "1"},
	{"net/ipv4/route/min_pmtu", "600"},
	{"net/ipv4/conf/default/arp_notify", "1"},
	{"net/ipv6/route/gc_interval", "31"},
	{"net/ipv6/icmp/ratelimit", "400"},
	{"net/ipv6/conf/all/keep_addr_on_down", "1"},
	{"net/netfilter/nf_conntrack_tcp_timeout_established", "4321"},
	{"vm/memfd_noexec", "1"},
	{"kernel/pid_max", "5000"},
};

/* Before Linux 6.14 that of all the machine. */
static bool has_own_pid_max(void) {
	struct utsname kernel;
	int major = 0, minor = 0;
	must(uname(&kernel));
	sscanf(kernel.release, "%d.%d", &major, &minor);
	return major > 6 || (major == 6 && minor >= 14);
}

static int path(char *into, int i) {
	sprintf(into, "/proc/sys/%s", changes[i][0]);
	return open(into, O_RDWR);
}

int main(void) {
	char name[200], text[200];
	bool there[sizeof changes / sizeof changes[0]];
	for (unsigned i = 0; i < sizeof changes / sizeof changes[0]; i++) {
		int file = strstr(changes[i][0], "pid_max") && !has_own_pid_max() ? -1 : path(name, i);
		there[i] = file >= 0;
		if (!there[i]) { /* some are not shown in a user namespace, or may not be set */
			bool may_lack = (errno == ENOENT && strstr(name, "/route/")) || (errno == EACCES && strstr(name, "memfd_noexec"));
			must(may_lack || strstr(changes[i][0], "pid_max") ? 0 : -1);
			continue;
		}
		must(write(file, changes[i][1], strlen(changes[i][1])));
		close(file);
	}
	freeze_here();
	spoil(must(write(path(name, 0), "23456789", 8)););
	for (unsigned i = 0; i < sizeof changes / sizeof changes[0]; i++) {
		if (!there[i])
			continue;
		memset(text, 0, sizeof text);
		int file = must(path(name, i));
		must(read(file, text, sizeof text - 1));
		text[strcspn(text, "\n")] = 0;
		expect(!strcmp(text, changes[i][1]), "%s was %s, is %s", name, changes[i][1], text);
		close(file);
	}
	return report();
}

/* Capability sets of each thread, the bounding and the ambient set, and securebits. */
#include "wait.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

static void get(struct __user_cap_data_struct into[2]) {
	must(syscall(SYS_capget, &(struct __user_cap_header_struct){_LINUX_CAPABILITY_VERSION_3, 0}, into));
}

static void set(unsigned effective, unsigned permitted, unsigned inheritable) {
	struct __user_cap_data_struct sets[2] = {{effective, permitted, inheritable}};
	must(syscall(SYS_capset, &(struct __user_cap_header_struct){_LINUX_CAPABILITY_VERSION_3, 0}, sets));
}

static void *check(__attribute__((unused)) void *nothing) {
	struct __user_cap_data_struct was[2], is[2];
	unsigned long sets[2][2] = {{0}};
	int bits = must(prctl(PR_GET_SECUREBITS));
	get(was);
	for (int after = 0; after < 2; after++) {
		for (int i = 0; i <= CAP_LAST_CAP; i++) {
			sets[after][0] |= (unsigned long)(prctl(PR_CAPBSET_READ, i) == 1) << i;
			sets[after][1] |= (unsigned long)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1) << i;
		}
		if (after == 0)
			wait_for("check");
		spoil(set(0, was->permitted, 0););
	}
	get(is);
	same("effective", was->effective, is->effective);
	same("permitted", was->permitted, is->permitted);
	same("inheritable", was->inheritable, is->inheritable);
	same("bounding", sets[0][0], sets[1][0]);
	same("ambient", sets[0][1], sets[1][1]);
	same("securebits", bits, prctl(PR_GET_SECUREBITS));
	return NULL;
}

int main(void) {
	unsigned some = 1 << CAP_CHOWN | 1 << CAP_SETUID | 1 << CAP_SETPCAP | 1 << CAP_KILL;
	pthread_t other;
	pid_t child = must(fork());
	if (child == 0) {
		must(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP));
		must(prctl(PR_CAPBSET_DROP, CAP_NET_RAW));
		must(setuid(1234));
		set(some, some, 1 << CAP_KILL);
		must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
		check(NULL);
		_exit(0);
	}
	pid_t locked = must(fork());
	if (locked == 0) { /* what neither keeps capabilities nor raises ambient ones any more, but has one */
		set(some, some, 1 << CAP_KILL);
		must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
		must(prctl(PR_SET_SECUREBITS, SECURE_ALL_LOCKS | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_SETUID_FIXUP));
		set(1 << CAP_KILL, 1 << CAP_KILL, 1 << CAP_KILL);
		check(NULL);
		_exit(0);
	}
	set(some, some | 1 << CAP_MKNOD, some);
	pthread_create(&other, NULL, check, NULL);
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	set(some, some, 0);
	freeze_here();
	check(NULL);
	pthread_join(other, NULL);
	join(child);
	join(locked);
	return report();
}

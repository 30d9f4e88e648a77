/* Time namespaces: for a process, for its future children only, and for a child; their clocks go on from where they were. */
// capabilities: CAP_SYS_ADMIN CAP_SYS_TIME
// apart: 0.3
#include "namespaces.h"


/* The kernel's own clock, not the vDSO's, and both of them. */
static double ahead(clockid_t clock) {
	struct timespec time;
	must(syscall(SYS_clock_gettime, clock, &time));
	double kernel = time.tv_sec + time.tv_nsec / 1e9, vdso = now(clock);
	expect(vdso - kernel < 1 && vdso >= kernel, "the vDSO says %f, the kernel %f", vdso, kernel);
	return kernel;
}

static void leave(const char *offsets) {
	must(unshare(CLONE_NEWTIME));
	int file = must(open("/proc/self/timens_offsets", O_WRONLY));
	must(write(file, offsets, strlen(offsets)));
	close(file);
}

static void stay(int who) {
	note_place(who, "time");
	double before = ahead(CLOCK_MONOTONIC), boot = ahead(CLOCK_BOOTTIME);
	wait_for("check");
	check_place(who, "time");
	double after = ahead(CLOCK_MONOTONIC), boot_after = ahead(CLOCK_BOOTTIME);
	expect(after >= before && after < before + 50, "%d: monotonic was %f, is %f", who, before, after);
	expect(boot_after >= boot && boot_after < boot + 50, "%d: boottime was %f, is %f", who, boot, boot_after);
}

int main(void) {
	prepare_places();
	pid_t first = must(fork());
	if (first == 0) {
		leave("monotonic 1000000 0\nboottime 2000000 500000000\n");
		pid_t child = must(fork());
		if (child == 0) { /* where it can't stay when it makes another one for its own children, but must come back to */
			leave("monotonic 3000000 0\nboottime 1000000 0\n");
			pid_t grandchild = must(fork());
			if (grandchild == 0) {
				expect(ahead(CLOCK_MONOTONIC) > 3000000, "the clocks are others");
				stay(4);
				expect(ahead(CLOCK_MONOTONIC) > 3000000, "the clocks are others now");
				return 0;
			}
			stay(2), join(grandchild);
			return 0;
		}
		stay(1); /* not in it itself */
		char link[64], future[64];
		ssize_t a = must(readlink("/proc/self/ns/time_for_children", future, 63)), b = must(readlink("/proc/self/ns/time", link, 63));
		future[a] = link[b] = 0;
		expect(strcmp(link, future), "it is in the namespace of its children");
		pid_t later = must(fork());
		if (later == 0) {
			check_place(3, "time");
			expect(ahead(CLOCK_MONOTONIC) > 1000000, "a child has other clocks than its brother");
			return 0;
		}
		join(child), join(later);
		return 0;
	}
	await(&places[1].noted), await(&places[2].noted), await(&places[4].noted);
	strcpy(places[3].before, places[2].before);
	note_place(0, "time");
	double before = ahead(CLOCK_MONOTONIC);
	freeze_here();
	spoil(must(unshare(CLONE_NEWTIME)); if (fork() == 0) { places[0].checked = 0; check_place(0, "time"); _exit(0); } must(wait(NULL)););
	if (!places[0].checked)
		check_place(0, "time");
	double after = ahead(CLOCK_MONOTONIC);
	expect(after >= before && after < before + 50, "monotonic was %f, is %f", before, after);
	compare_places("time", 5);
	join(first);
	return report();
}

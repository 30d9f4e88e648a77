/* The vDSO is where it was and tells the same time as the kernel. */
#include "memory.h"
#include <sys/auxv.h>

static void clocks(void) {
	static const clockid_t kinds[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
	struct timespec times[3];
	for (int i = 0; i < 3; i++) {
		must(syscall(SYS_clock_gettime, kinds[i], &times[0]));
		must(clock_gettime(kinds[i], &times[1]));
		must(syscall(SYS_clock_gettime, kinds[i], &times[2]));
		for (int j = 0; j < 2; j++)
			expect(times[j].tv_sec < times[j + 1].tv_sec || (times[j].tv_sec == times[j + 1].tv_sec && times[j].tv_nsec <= times[j + 1].tv_nsec),
				"clock %d: %ld.%09ld then %ld.%09ld", kinds[i], times[j].tv_sec, times[j].tv_nsec, times[j + 1].tv_sec, times[j + 1].tv_nsec);
		expect(times[2].tv_sec - times[0].tv_sec < 2, "clock %d jumps", kinds[i]);
	}
}

int main(void) {
	char *maps = read_proc("/proc/self/maps"), *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
	clocks();
	freeze_here();
	spoil(must(mremap(vdso, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, vdso - (1 << 22))););
	same_maps(maps, read_proc("/proc/self/maps"));
	char *entry = entry_of(read_proc("/proc/self/maps"), vdso);
	expect(entry && strstr(entry, "[vdso]") && strcspn(entry, "\n") > (size_t)(strstr(entry, "[vdso]") - entry), "the vDSO isn't where auxv says");
	expect(!memcmp(vdso, "\177ELF", 4), "the vDSO isn't an ELF");
	clocks();
	time_t seconds = time(NULL);
	expect(labs(seconds - (time_t)now(CLOCK_REALTIME)) < 3, "time() tells %ld", seconds);
	return report();
}

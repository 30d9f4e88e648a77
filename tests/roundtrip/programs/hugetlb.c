/* Huge pages of hugetlbfs: private ones that a child shares and copies, shared ones, memfds, System V memory. */
// hugepages: 2048kB 30
// capabilities: CAP_IPC_LOCK
#include "memory.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { RW = PROT_READ | PROT_WRITE };
static size_t size = 2048 << 10;
static int bits = 21;

static long pool(const char *name) {
	char path[128];
	snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%zukB/%s", size >> 10, name);
	return atol(read_proc(path));
}

static char *huge(size_t pages, int flags) { return anonymous(pages * size, RW, flags | MAP_HUGETLB | bits << MAP_HUGE_SHIFT); }

int main(void) {
	char *place = anonymous(100 * size, PROT_NONE, MAP_PRIVATE); /* mappings of one kind don't become neighbours */
	char *own = huge(4, MAP_PRIVATE), *reserved = huge(200, MAP_PRIVATE | MAP_NORESERVE), *common = huge(3, MAP_SHARED);
	fill(own, PAGE, 1), fill(own + 2 * size, size, 2), fill(reserved + 77 * size, PAGE, 3), fill(common + size, PAGE, 4);
	must(mprotect(own + size, size, PROT_READ));
	must(munmap(reserved, 70 * size));
	reserved += 70 * size;

	int memory = must(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_ALLOW_SEALING | (unsigned)bits << MAP_HUGE_SHIFT));
	must(ftruncate(memory, 3 * size));
	char *shown = must(mmap(NULL, 3 * size, RW, MAP_SHARED, memory, 0));
	fill(shown, PAGE, 5), fill(shown + 2 * size, PAGE, 6);
	char *changed = must(mmap(NULL, 2 * size, RW, MAP_PRIVATE, memory, size));
	fill(changed + size, PAGE, 7);
	must(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));

	int id = must(shmget(0x3001, 2 * size - 5000, IPC_CREAT | 0600 | SHM_HUGETLB | bits << MAP_HUGE_SHIFT));
	char *attached = must(shmat(id, NULL, 0)), *read_only = must(shmat(id, NULL, SHM_RDONLY));
	fill(attached + size, PAGE, 8);
	int removed = must(shmget(IPC_PRIVATE, size, IPC_CREAT | 0600 | SHM_HUGETLB | bits << MAP_HUGE_SHIFT));
	char *last = must(shmat(removed, NULL, 0));
	fill(last, PAGE, 9);
	must(shmctl(removed, IPC_RMID, NULL));

	pid_t child = must(fork());
	if (child == 0) {
		fill(own + 2 * size, PAGE, 20);
		say("copied");
		wait_for("counted");
		expect(is_filled(own, PAGE, 1) && is_filled(own + 2 * size, PAGE, 20), "the child's pages");
		expect(is_filled(common + size, PAGE, 4), "what the child shares");
		fill(common + 2 * size, PAGE, 21);
		_exit(0);
	}
	wait_for("copied");
	long promised = pool("resv_hugepages");
	char *maps = strdup(read_proc("/proc/self/maps")), flags[4][128], now[128], *places[] = {own, reserved, common, changed};
	for (int i = 0; i < 4; i++)
		smaps_flags(places[i], flags[i]);

	freeze_here();
	spoil(fill(changed + size, PAGE, 8); must(munmap(reserved, size)););
	same_maps(maps, read_proc("/proc/self/maps"));
	for (int i = 0; i < 4; i++) {
		smaps_flags(places[i], now);
		expect(!strcmp(flags[i], now), "mapping %d: flags were %s, are %s", i, flags[i], now);
	}
	same("kB of a page", size >> 10, smaps_number(own, "KernelPageSize:"));
	same("promised pages", promised, pool("resv_hugepages"));
	say("counted");
	join(child);
	expect(is_filled(own, PAGE, 1) && is_filled(own + 2 * size, size, 2) && own[size] == 0, "private pages");
	expect(is_filled(reserved + 7 * size, PAGE, 3) && reserved[0] == 0, "pages that were not promised");
	expect(is_filled(common + size, PAGE, 4) && is_filled(common + 2 * size, PAGE, 21), "shared pages");
	expect(is_filled(shown, PAGE, 5) && shown[size] == 0 && is_filled(shown + 2 * size, PAGE, 6) && is_filled(changed + size, PAGE, 7), "the memfd");
	same("seals", F_SEAL_SHRINK | F_SEAL_GROW, fcntl(memory, F_GET_SEALS));
	fill(attached, PAGE, 10);
	expect(is_filled(read_only, PAGE, 10) && is_filled(read_only + size, PAGE, 8) && is_filled(last, PAGE, 9), "segments");
	struct shmid_ds about;
	must(shmctl(id, IPC_STAT, &about));
	same("size of the segment", 2 * size - 5000, about.shm_segsz);
	same("attachments", 2, about.shm_nattch);
	same("shmdt", 0, shmdt(attached) | shmdt(read_only) | shmdt(last));
	expect(shmctl(removed, IPC_STAT, &about) && errno == EINVAL, "removed memory is still there");
	must(munmap(place, 100 * size));
	return report();
}

/* bpf(2): a map that is open several times, for reading or writing only, too, in two processes; one that its maker may only read. */
// capabilities: CAP_BPF CAP_PERFMON CAP_SYS_ADMIN
#include "wait.h"
#include <linux/bpf.h>

static long bpf(int command, union bpf_attr *attribute) { return syscall(SYS_bpf, command, attribute, sizeof *attribute); }

static int made(int type, int flags) {
	return must(bpf(BPF_MAP_CREATE, &(union bpf_attr){.map_type = type, .key_size = 4, .value_size = 8, .max_entries = 4, .map_flags = flags}));
}

static int opened(int map, int flags) {
	struct bpf_map_info info = {0};
	must(bpf(BPF_OBJ_GET_INFO_BY_FD, &(union bpf_attr){.info = {.bpf_fd = map, .info_len = sizeof info, .info = (uintptr_t)&info}}));
	return must(bpf(BPF_MAP_GET_FD_BY_ID, &(union bpf_attr){.map_id = info.id, .open_flags = flags}));
}

static int put(int map, uint32_t key, uint64_t value) {
	return bpf(BPF_MAP_UPDATE_ELEM, &(union bpf_attr){.map_fd = map, .key = (uintptr_t)&key, .value = (uintptr_t)&value});
}

static long get(int map, uint32_t key) {
	uint64_t value = 0;
	return bpf(BPF_MAP_LOOKUP_ELEM, &(union bpf_attr){.map_fd = map, .key = (uintptr_t)&key, .value = (uintptr_t)&value}) ? -errno : (long)value;
}

int main(void) {
	int both = made(BPF_MAP_TYPE_HASH, 0), again = opened(both, 0), reads = opened(both, BPF_F_RDONLY), writes = opened(both, BPF_F_WRONLY);
	int read_only = made(BPF_MAP_TYPE_ARRAY, BPF_F_RDONLY), filling = opened(read_only, 0), only_writes = made(BPF_MAP_TYPE_HASH, BPF_F_WRONLY);
	must(put(both, 1, 11) | put(filling, 2, 22) | put(only_writes, 3, 33));
	must(close(filling));
	pid_t child = must(fork());
	if (child == 0) {
		/* All that this one has is another open file of it. */
		close(both), close(reads), close(writes);
		wait_for("changed");
		same("what the other process has put there", 44, get(again, 4));
		_exit(0);
	}
	freeze_here();
	same("what was there", 11, get(reads, 1));
	spoil(must(bpf(BPF_MAP_DELETE_ELEM, &(union bpf_attr){.map_fd = both, .key = (uintptr_t)&(uint32_t){1}}));)
	same("the same by another", 11, get(again, 1));
	same("writing to what may be read", -1, put(reads, 1, 1));
	same("reading what may be written to", -EPERM, get(writes, 1));
	must(put(writes, 4, 44));
	same("what was written", 44, get(both, 4));
	same("what only its maker may not write to", 22, get(read_only, 2));
	same("writing to it", -1, put(read_only, 2, 2));
	same("reading what only may be written to", -EPERM, get(only_writes, 3));
	must(put(only_writes, 4, 4));
	int looking = opened(only_writes, 0);
	same("what had been written", 33, get(looking, 3));
	say("changed");
	join(child);
	return report();
}

/* bpf(2): maps of the common types with what is in them, frozen ones, and those that are mapped. */
// capabilities: CAP_BPF CAP_PERFMON
#include "wait.h"
#include <linux/bpf.h>

enum { TYPES = 7, CPUS = 64, MANY = 5000 };
static const int types[TYPES] = {BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_LRU_HASH,
	BPF_MAP_TYPE_LRU_PERCPU_HASH, BPF_MAP_TYPE_LPM_TRIE};
struct key { uint32_t prefix, number; };

static long bpf(int command, union bpf_attr *attribute) { return syscall(SYS_bpf, command, attribute, sizeof *attribute); }

static int made(int type, int key, int value, int entries, int flags, const char *name) {
	union bpf_attr attribute = {.map_type = type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags};
	strcpy(attribute.map_name, name);
	return must(bpf(BPF_MAP_CREATE, &attribute));
}

static int put(int map, const void *key, const void *value) {
	union bpf_attr attribute = {.map_fd = map, .key = (uintptr_t)key, .value = (uintptr_t)value};
	return bpf(BPF_MAP_UPDATE_ELEM, &attribute);
}

static int get(int map, const void *key, void *value) {
	union bpf_attr attribute = {.map_fd = map, .key = (uintptr_t)key, .value = (uintptr_t)value};
	return bpf(BPF_MAP_LOOKUP_ELEM, &attribute);
}

static bool is_array(int type) { return type == BPF_MAP_TYPE_ARRAY || type == BPF_MAP_TYPE_PERCPU_ARRAY; }
static bool is_trie(int type) { return type == BPF_MAP_TYPE_LPM_TRIE; }

/* The number as this type has it for a key. */
static const void *key_of(int type, uint32_t number) {
	static struct key key;
	key = (struct key){32, number};
	return is_trie(type) ? (void *)&key : (void *)&key.number;
}

int main(void) {
	int maps[TYPES];
	uint64_t value[CPUS] = {0}, found[CPUS] = {0};
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	for (int i = 0; i < TYPES; i++) {
		maps[i] = made(types[i], is_trie(types[i]) ? 8 : 4, 8, 16, is_trie(types[i]) ? BPF_F_NO_PREALLOC : 0, "a_name");
		for (int number = 1; number < 6; number++) {
			for (long cpu = 0; cpu < cpus; cpu++)
				value[cpu] = number * 1000 + i * 100 + cpu;
			must(put(maps[i], key_of(types[i], number), value));
		}
	}
	int large = made(BPF_MAP_TYPE_HASH, 4, 8, MANY, BPF_F_NO_PREALLOC, "large"), frozen = made(BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0, ""), mapped[2];
	for (uint32_t number = 0; number < MANY; number++) {
		value[0] = number * 3;
		must(put(large, &number, value));
	}
	uint32_t zero = 0;
	value[0] = 4711;
	must(put(frozen, &zero, value));
	must(bpf(BPF_MAP_FREEZE, &(union bpf_attr){.map_fd = frozen}));
	volatile uint64_t *memory[2];
	for (int i = 0; i < 2; i++) {
		mapped[i] = made(BPF_MAP_TYPE_ARRAY, 4, 8, 600, BPF_F_MMAPABLE, i ? "second" : "first");
		memory[i] = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, mapped[i], 0));
		memory[i][599] = 99;
	}

	/* Maps of maps. */
	int outer[2];
	for (int i = 0; i < 2; i++) {
		union bpf_attr attribute = {.map_type = i ? BPF_MAP_TYPE_HASH_OF_MAPS : BPF_MAP_TYPE_ARRAY_OF_MAPS, .key_size = 4, .value_size = 4, .max_entries = 4,
			.inner_map_fd = large};
		outer[i] = must(bpf(BPF_MAP_CREATE, &attribute));
		must(put(outer[i], &(uint32_t){2}, &large));
	}

	freeze_here();
	spoil(must(put(maps[0], key_of(types[0], 1), value)););

	for (int i = 0; i < TYPES; i++) {
		for (int number = 1; number < 6; number++) {
			must(get(maps[i], key_of(types[i], number), found));
			same("a value", number * 1000 + i * 100, found[0]);
			bool per_cpu = types[i] == BPF_MAP_TYPE_PERCPU_HASH || types[i] == BPF_MAP_TYPE_PERCPU_ARRAY || types[i] == BPF_MAP_TYPE_LRU_PERCPU_HASH;
			for (long cpu = 1; per_cpu && cpu < cpus; cpu++)
				same("a value of another CPU", number * 1000 + i * 100 + cpu, found[cpu]);
		}
		if (is_array(types[i]))
			same("past the end", -1, get(maps[i], &(uint32_t){16}, found));
		else
			same("what was never there", -1, get(maps[i], key_of(types[i], 7), found));
		struct bpf_map_info info = {0};
		union bpf_attr ask = {.info.bpf_fd = maps[i], .info.info_len = sizeof info, .info.info = (uintptr_t)&info};
		must(bpf(BPF_OBJ_GET_INFO_BY_FD, &ask));
		same("its name", 0, strcmp(info.name, "a_name"));
		same("its type", types[i], info.type);
		same("its size", 16, info.max_entries);
	}
	for (uint32_t number = 0; number < MANY; number++) {
		must(get(large, &number, found));
		same("one of many", number * 3, found[0]);
	}
	must(get(frozen, &zero, found));
	same("what is frozen", 4711, found[0]);
	same("changing it", -1, put(frozen, &zero, value));
	for (int i = 0; i < 2; i++) {
		struct bpf_map_info info = {0};
		union bpf_attr ask = {.info.bpf_fd = large, .info.info_len = sizeof info, .info.info = (uintptr_t)&info};
		must(bpf(BPF_OBJ_GET_INFO_BY_FD, &ask));
		must(get(outer[i], &(uint32_t){2}, found));
		same("the map in a map", info.id, (uint32_t)found[0]);
		same("no other", -1, get(outer[i], &(uint32_t){1}, found));
		same("another of its kind", 0, put(outer[i], &(uint32_t){3}, &large));
	}
	for (uint64_t i = 0; i < 2; i++) {
		same("what was written by the mapping", 99, memory[i][599]);
		memory[i][0] = 5 + i;
		must(get(mapped[i], &zero, found));
		same("the mapping shows the map", 5 + i, found[0]);
	}
	return report();
}

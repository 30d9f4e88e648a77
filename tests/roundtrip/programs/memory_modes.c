/* What the kernel was told of a memory: registrations for membarrier, merging, huge pages, local descriptors, NUMA policies. */
#include "memory.h"
#include <asm/ldt.h>
#include <linux/membarrier.h>
#include <linux/mempolicy.h>
#include <sys/prctl.h>

enum { SET_MERGE = 67, GET_MERGE, GET_REGISTRATIONS = 1 << 9, EXCEPT_ADVISED = 2 };

static int word_in(unsigned selector) {
	int value;
	__asm__ volatile("push %%gs; mov %w1, %%gs; mov %%gs:4, %0; pop %%gs" : "=r"(value) : "r"(selector) : "memory");
	return value;
}

struct policy { int mode; unsigned long nodes[16]; };
static struct policy policy_of(void *place) {
	struct policy found = {0};
	must(syscall(SYS_get_mempolicy, &found.mode, found.nodes, 1024ul, place, place ? MPOL_F_ADDR : 0));
	return found;
}

int main(void) {
	pid_t child = must(fork()); /* before all that */
	if (child == 0) {
		wait_for("check");
		same("a child's huge pages", 0, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
		same("a child's machine checks", PR_MCE_KILL_DEFAULT, prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
		same("a child's merging", 0, prctl(GET_MERGE, 0, 0, 0, 0) > 0);
		long found = syscall(SYS_membarrier, GET_REGISTRATIONS, 0, 0);
		same("a child's registrations", 0, found < 0 ? 0 : found);
		_exit(0);
	}
	must(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0));
	long registered = syscall(SYS_membarrier, GET_REGISTRATIONS, 0, 0);
	prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0);
	long huge = must(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	int merges = prctl(SET_MERGE, 1, 0, 0, 0) == 0 ? prctl(GET_MERGE, 0, 0, 0, 0) : 0;
	/* Two threads of one program merge too: pages that are the same. */
	char *same_ones = anonymous(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (int page = 0; page < 8; page++)
		fill(same_ones + page * PAGE, PAGE, 1);
	int *low = must(mmap((void *)0x50000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	low[1] = 77;
	struct user_desc descriptions[2] = {{.entry_number = 3, .base_addr = 0x50000000, .limit = PAGE - 1, .seg_32bit = 1, .useable = 1},
		{.entry_number = 300, .base_addr = 0x12345678, .limit = 0xabcde, .contents = MODIFY_LDT_CONTENTS_CODE, .read_exec_only = 1, .limit_in_pages = 1, .seg_not_present = 1}};
	for (int i = 0; i < 2; i++)
		must(syscall(SYS_modify_ldt, 0x11, &descriptions[i], sizeof descriptions[i]));
	static char table[2][301 * 8];
	must(syscall(SYS_modify_ldt, 0, table[0], sizeof table[0]));
	char *bound = anonymous(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	unsigned long nodes = 1;
	must(syscall(SYS_mbind, bound + PAGE, 2 * PAGE, MPOL_BIND | MPOL_F_STATIC_NODES, &nodes, 8, 0));
	must(syscall(SYS_mbind, bound + 3 * PAGE, PAGE, MPOL_PREFERRED, &nodes, 8, 0));
	struct policy was[3] = {policy_of(bound), policy_of(bound + PAGE), policy_of(bound + 3 * PAGE)};

	freeze_here();
	spoil(must(syscall(SYS_modify_ldt, 0x11, &(struct user_desc){.entry_number = 300}, sizeof *descriptions));
		must(syscall(SYS_mbind, bound + PAGE, PAGE, MPOL_DEFAULT, NULL, 0, 0)););
	same("registrations", registered, syscall(SYS_membarrier, GET_REGISTRATIONS, 0, 0));
	same("membarrier", 0, syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
	same("membarrier of cores", 0, syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0));
	same("huge pages", huge, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	same("merging", merges, merges ? prctl(GET_MERGE, 0, 0, 0, 0) : 0);
	for (int page = 0; page < 8; page++)
		expect(is_filled(same_ones + page * PAGE, PAGE, 1), "page %d holds something else", page);
	same("bytes of the table", sizeof table[1], syscall(SYS_modify_ldt, 0, table[1], sizeof table[1]));
	expect(!memcmp(table[0], table[1], sizeof *table), "the local descriptors are others");
	same("what a local segment shows", 77, word_in(3 << 3 | 7));
	for (int i = 0; i < 3; i++) {
		struct policy is = policy_of(bound + (i ? 2 * i - 1 : 0) * PAGE);
		expect(!memcmp(&was[i], &is, sizeof is), "policy %d was %x of %lx, is %x of %lx", i, was[i].mode, was[i].nodes[0], is.mode, is.nodes[0]);
	}
	join(child);
	return report();
}

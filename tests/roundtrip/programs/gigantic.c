/* A huge page of 1 GiB, of which little is written. */
// hugepages: 1048576kB 2
// never: set_back restored_twice left_running restored_from_a_snapshot after_a_failed_checkpoint
#include "memory.h"

int main(void) {
	const size_t size = 1ul << 30;
	char *page = anonymous(2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_HUGETLB | 30u << MAP_HUGE_SHIFT);
	fill(page + size + (700 << 20), PAGE, 1);
	freeze_here();
	spoil(page[size]++;);
	same("kB of a page", size >> 10, smaps_number(page, "KernelPageSize:"));
	expect(is_filled(page + size + (700 << 20), PAGE, 1) && page[size] == 0, "it holds something else");
	expect(page[0] == 0, "the page that was never touched");
	return report();
}

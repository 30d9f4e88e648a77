/* Private anonymous memory: what was written is there, what was never touched stays untouched. */
#include "memory.h"

enum { PAGES = 600 };

int main(void) {
	unsigned char was[PAGES], is[PAGES];
	char *memory = anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	char *large = anonymous(1ul << 36, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
	for (int i = 0; i < PAGES; i++)
		if (i % 3 == 0 || (i > 200 && i < 260))
			fill(memory + i * PAGE, PAGE, i);
	memset(memory + 400 * PAGE, 0, 3 * PAGE); /* written, with zeros */
	fill(large + (1ul << 35), 5 * PAGE, 1);
	must(mincore(memory, PAGES * PAGE, was));
	char *maps = read_proc("/proc/self/maps");

	freeze_here();
	spoil(memory[300 * PAGE + 77]++; memory[1 * PAGE] = 0;);

	same_maps(maps, read_proc("/proc/self/maps"));
	must(mincore(memory, PAGES * PAGE, is));
	for (int i = 0; i < PAGES; i++) {
		bool zero = i >= 400 && i < 403;
		expect(was[i] || !is[i], "page %d has been touched", i);
		expect(zero || !was[i] || is_filled(memory + i * PAGE, PAGE, i), "page %d holds something else", i);
		for (size_t byte = 0; byte < PAGE && (zero || !was[i]); byte++)
			expect(memory[i * PAGE + byte] == 0, "page %d isn't zero", i);
	}
	expect(is_filled(large + (1ul << 35), 5 * PAGE, 1), "the large mapping holds something else");
	expect(smaps_number(large, "Rss:") <= 20, "the large mapping has %ld kB", smaps_number(large, "Rss:"));
	return report();
}

/* The whole XSAVE state: x87, SSE, AVX, AVX-512 and AMX tiles, whatever this CPU has, outside and inside of calls. */
// arguments: loop | call
// flags: -mxsave
#include "wait.h"
#include <cpuid.h>
#include <immintrin.h>

static struct { uint32_t offset, size; const char *name; } parts[32] = {
	[0] = {32, 128, "x87"}, [1] = {160, 256, "SSE"}, [2] = {.name = "AVX"}, [5] = {.name = "opmask"},
	[6] = {.name = "upper halves of ZMM0-15"}, [7] = {.name = "ZMM16-31"}, [17] = {.name = "tile configuration"},
	[18] = {.name = "tiles"}};
static uint8_t before[16384] __attribute__((aligned(64))), after[16384] __attribute__((aligned(64)));
static uint8_t clean[16384] __attribute__((aligned(64)));
static volatile int go;

__attribute__((noinline)) static void hold(uint64_t mask, long sleeps) {
	struct timespec nap = {.tv_nsec = 10000000};
	uint32_t low = mask, high = mask >> 32;
	asm volatile("xsave64 %0" : "=m"(clean) : "a"(low), "d"(high));
	asm volatile("xrstor64 %0" : : "m"(before), "a"(low), "d"(high));
	while (!go) /* no function is called: nothing else touches the state */
		if (sleeps)
			asm volatile("syscall" : : "a"(SYS_nanosleep), "D"(&nap), "S"(0) : "rcx", "r11", "memory");
	asm volatile("xsave64 %0" : "=m"(after) : "a"(low), "d"(high));
	asm volatile("xrstor64 %0" : : "m"(clean), "a"(low), "d"(high));
}

static void *thread(void *sleeps) {
	uint32_t a, b, c, d;
	syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
	uint64_t mask = _xgetbv(0) & 0x600e7; /* all of the above */
	asm volatile("xsave64 %0" : "=m"(before) : "a"((uint32_t)mask), "d"(0));
	for (int i = 0; i < 19; i++) {
		if (!(mask >> i & 1))
			continue;
		__cpuid_count(0xd, i, a, b, c, d);
		if (i > 1)
			parts[i].size = a, parts[i].offset = b;
		fill(before + parts[i].offset, parts[i].size, i + 1);
	}
	for (int i = 0; i < 8; i++) /* x87 registers are 10 bytes each; tiles 16 rows of 64 bytes */
		memset(before + 32 + 16 * i + 10, 0, 6);
	if (mask >> 17 & 1) {
		memset(before + parts[17].offset, 0, parts[17].size);
		before[parts[17].offset] = 1;
		for (int i = 0; i < 8; i++)
			before[parts[17].offset + 16 + 2 * i] = 64, before[parts[17].offset + 48 + i] = 16;
	}
	*(uint64_t *)(before + 512) = mask;
	*(uint16_t *)(before) = 0x0f7f; /* x87 control word: round to zero */
	*(uint32_t *)(before + 24) = 0x7fa0; /* MXCSR: round to zero, an exception flag */
	hold(mask, (long)sleeps);
	spoil(after[parts[7].offset + 3] ^= 1; after[200] ^= 1;);
	for (int i = 0; i < 19; i++)
		expect(!(mask >> i & 1) || !memcmp(before + parts[i].offset, after + parts[i].offset, parts[i].size), "%s: lost", parts[i].name);
	same("x87 control word", *(uint16_t *)before, *(uint16_t *)after);
	same("MXCSR", *(uint32_t *)(before + 24), *(uint32_t *)(after + 24));
	return NULL;
}

int main(int count, char **arguments) {
	pthread_t held;
	pthread_create(&held, NULL, thread, (void *)(long)(count > 1 && arguments[1][0] == 'c'));
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	freeze_here();
	go = 1;
	pthread_join(held, NULL);
	return report();
}

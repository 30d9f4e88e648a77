/* Has something in a register of SSE when it says that it is ready, and from then on. */
#include <fcntl.h>
#include <sys/syscall.h>

int main(void) {
	asm volatile("movq %0, %%xmm0\n\t"
	             "syscall\n"
	             "1: pause\n\t"
	             "jmp 1b"
	             :
	             : "r"(1L), "a"(SYS_open), "D"("/work/ready"), "S"(O_WRONLY | O_CREAT), "d"(0644)
	             : "rcx", "r11", "xmm0", "memory");
}

/* Has two mappings registered with a userfaultfd, neither of which is ever touched. */
#include "../programs/wait.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#define SIZE 8192

static void registered(int file, int protection, FILE *addresses) {
	char *memory = must(mmap(NULL, SIZE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	struct uffdio_register wanted = {.range = {(uint64_t)memory, SIZE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	must(ioctl(file, UFFDIO_REGISTER, &wanted));
	fprintf(addresses, "%p\n", memory);
}

int main(void) {
	int file = must(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
	struct uffdio_api api = {.api = UFFD_API};
	must(ioctl(file, UFFDIO_API, &api));
	FILE *addresses = fopen(in_work("addresses"), "w");
	registered(file, PROT_READ | PROT_WRITE, addresses);
	registered(file, PROT_READ, addresses);
	fclose(addresses);
	must(fcntl(file, F_DUPFD, 77));
	close(file);
	freeze_here();
	return report();
}

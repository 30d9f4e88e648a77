/* Memory that nobody else can read, system calls that become signals, a vDSO without its data, or what a socket shows. */
// arguments: secret | dispatch | vdso | received
#include "../programs/wait.h"
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector; /* SYSCALL_DISPATCH_FILTER_ALLOW */

int main(int count, char **arguments) {
	if (count > 1 && arguments[1][0] == 's') {
		int file = must(syscall(SYS_memfd_secret, O_CLOEXEC));
		must(ftruncate(file, 4096));
		char *memory = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
		memory[0] = 1;
		must(fcntl(file, F_DUPFD, 77));
		close(file);
	} else if (count > 1 && arguments[1][0] == 'v') {
		unsigned long start = 0, end = 0;
		char line[256], *found = NULL;
		FILE *maps = fopen("/proc/self/maps", "r");
		while (!found && fgets(line, sizeof line, maps))
			found = strstr(line, "[vvar]");
		fclose(maps);
		must(found && sscanf(line, "%lx-%lx", &start, &end) == 2 ? 0 : -1);
		must(munmap((void *)start, end - start));
	} else if (count > 1 && arguments[1][0] == 'r') {
		int listener = must(socket(AF_INET, SOCK_STREAM, 0)), client = must(socket(AF_INET, SOCK_STREAM, 0));
		struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
		socklen_t length = sizeof name;
		must(bind(listener, (void *)&name, length));
		must(listen(listener, 1));
		must(getsockname(listener, (void *)&name, &length));
		must(connect(client, (void *)&name, length));
		must(accept(listener, NULL, NULL));
		must(mmap(NULL, 4096, PROT_READ, MAP_SHARED, client, 0));
	} else
		must(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector));
	freeze_here();
	return report();
}

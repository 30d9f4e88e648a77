/* Has memory whose faults somebody outside handles, who has been given the userfaultfd. */
#include "../programs/wait.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static void give_away(int file) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	snprintf(name.sun_path, sizeof name.sun_path, "%s", in_work("handler"));
	int to = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(connect(to, (struct sockaddr *)&name, sizeof name));
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof file)];
	} control = {.head = {CMSG_LEN(sizeof file), SOL_SOCKET, SCM_RIGHTS}};
	memcpy(CMSG_DATA(&control.head), &file, sizeof file);
	struct iovec one = {"u", 1};
	must(sendmsg(to, &(struct msghdr){.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control}, 0));
	must(close(to));
	must(close(file));
}

int main(void) {
	int file = must(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
	must(ioctl(file, UFFDIO_API, &(struct uffdio_api){.api = UFFD_API}));
	char *memory = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	struct uffdio_register wanted = {.range = {(uint64_t)memory, 8192}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	must(ioctl(file, UFFDIO_REGISTER, &wanted));
	give_away(file);
	freeze_here();
	return report();
}

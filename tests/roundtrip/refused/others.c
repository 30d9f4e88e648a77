/* Holds what can't be kept, as descriptor 77: a BPF program, a BPF map of a rare type, a socket of vsock or XDP, a TCP socket under repair, /dev/kvm or /dev/fuse. */
#include "../programs/wait.h"
#include <linux/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int under_repair(void) {
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &(int){1}, sizeof(int)));
	return fd;
}

static int made(const char *what) {
	struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
	union bpf_attr program = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insns = (uintptr_t)code, .insn_cnt = 2, .license = (uintptr_t)"GPL"},
		map = {.map_type = BPF_MAP_TYPE_RINGBUF, .max_entries = 4096, .map_name = "ring"};
	switch (*what) {
	case 'p': return syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program);
	case 'r': return syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map);
	case 'x': return socket(AF_XDP, SOCK_RAW, 0);
	case 'u': return under_repair();
	case 'v': return socket(AF_VSOCK, SOCK_STREAM, 0);
	default: return open(what, O_RDWR);
	}
}

int main(int count, char **arguments) {
	int fd = must(made(count > 1 ? arguments[1] : ""));
	must(dup2(fd, 77));
	close(fd);
	freeze_here();
	same("it is still there", 0, fcntl(77, F_GETFD));
	return report();
}

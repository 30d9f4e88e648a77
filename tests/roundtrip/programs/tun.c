/* /dev/net/tun: tun and tap devices with their holders, queues and settings, one that stays, and a file without a device. */
// capabilities: CAP_NET_ADMIN
// device: /dev/net/tun
#include "wait.h"
#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>

static int opened(void) { return must(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC)); }

static int attached(const char *name, int flags) {
	int fd = opened();
	struct ifreq request = {.ifr_flags = flags};
	strcpy(request.ifr_name, name);
	must(ioctl(fd, TUNSETIFF, &request));
	return fd;
}

static void set_up(const char *name, const char *address) {
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0));
	struct ifreq request = {0};
	strcpy(request.ifr_name, name);
	*(struct sockaddr_in *)&request.ifr_addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(address)};
	must(ioctl(fd, SIOCSIFADDR, &request));
	((struct sockaddr_in *)&request.ifr_addr)->sin_addr.s_addr = inet_addr("255.255.255.0");
	must(ioctl(fd, SIOCSIFNETMASK, &request));
	must(ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	must(ioctl(fd, SIOCSIFFLAGS, &request));
	close(fd);
}

static int flags_of(int fd) {
	struct ifreq request = {0};
	return ioctl(fd, TUNGETIFF, &request) ? -1 : (unsigned short)request.ifr_flags;
}

static int number(int fd, unsigned long what) {
	int value = -1;
	must(ioctl(fd, what, &value));
	return value;
}

/* What is sent to the network behind the device comes out of the descriptor. */
static void sends(const char *what, int fd, const char *to, int skipped) {
	int sender = must(socket(AF_INET, SOCK_DGRAM, 0));
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(99), .sin_addr.s_addr = inet_addr(to)};
	char packet[256];
	must(sendto(sender, "ping", 4, 0, (void *)&name, sizeof name));
	close(sender);
	for (int i = 0; i < 600; i++) {
		ssize_t got = read(fd, packet, sizeof packet);
		if (got >= skipped + 32 && !memcmp(packet + skipped + 28, "ping", 4))
			return;
		if (got < 0)
			poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 100);
	}
	differs("%s: nothing comes", what);
}

int main(void) {
	int tun = attached("tun7", IFF_TUN | IFF_NO_PI), told = attached("tun8", IFF_TUN), fresh = opened(), stays = attached("tun9", IFF_TUN | IFF_NO_PI),
		queues[2], tap = attached("tap7", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	for (int i = 0; i < 2; i++)
		queues[i] = attached("tun6", IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE);
	must(ioctl(queues[1], TUNSETQUEUE, &(struct ifreq){.ifr_flags = IFF_DETACH_QUEUE}));
	must(ioctl(stays, TUNSETPERSIST, 1));
	must(ioctl(tun, TUNSETSNDBUF, &(int){50000}));
	must(ioctl(tap, TUNSETVNETHDRSZ, &(int){12}));
	must(ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4));
	set_up("tun7", "10.77.1.1");
	set_up("tun8", "10.77.2.1");

	freeze_here();
	spoil(must(ioctl(tun, TUNSETSNDBUF, &(int){60000})););

	sends("the tun device", tun, "10.77.1.2", 0);
	sends("the one that tells of packets", told, "10.77.2.2", 4);
	same("the send buffer", 50000, number(tun, TUNGETSNDBUF));
	same("the header", 12, number(tap, TUNGETVNETHDRSZ));
	same("the kind", IFF_TAP, flags_of(tap) & 15);
	same("IFF_VNET_HDR", IFF_VNET_HDR, flags_of(tap) & IFF_VNET_HDR);
	same("it doesn't stay", 0, flags_of(tap) & IFF_PERSIST);
	same("this one does", IFF_PERSIST, flags_of(stays) & IFF_PERSIST);
	same("the first queue is there", 0, flags_of(queues[0]) & IFF_DETACH_QUEUE);
	same("the second is not", IFF_DETACH_QUEUE, flags_of(queues[1]) & IFF_DETACH_QUEUE);
	same("one without a device", -1, flags_of(fresh));
	close(tap);
	same("a device ends with its holder", 0, if_nametoindex("tap7"));
	close(stays);
	same("but the one that stays", 1, if_nametoindex("tun9") > 0);
	close(queues[0]);
	same("not while a queue has it", 1, if_nametoindex("tun6") > 0);
	return report();
}

/* Anycast addresses of IPv6: which socket has which, and how often. */
// capabilities: CAP_NET_ADMIN
#include "wait.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct in6_ifreq { struct in6_addr addr; uint32_t length; int index; };
enum { LOOPBACK = 1 };

static int change(int fd, int how, const char *address) {
	struct ipv6_mreq one = {.ipv6mr_interface = LOOPBACK};
	inet_pton(AF_INET6, address, &one.ipv6mr_multiaddr);
	return setsockopt(fd, IPPROTO_IPV6, how, &one, sizeof one);
}

static int times(int fd, const char *address) {
	int count = 0;
	while (change(fd, IPV6_LEAVE_ANYCAST, address) == 0)
		count++;
	return count;
}

int main(void) {
	struct in6_ifreq own = {.length = 64, .index = LOOPBACK};
	int member = must(socket(AF_INET6, SOCK_DGRAM, 0)), other = must(socket(AF_INET6, SOCK_DGRAM, 0)), none = must(socket(AF_INET6, SOCK_DGRAM, 0));
	inet_pton(AF_INET6, "fd77::1", &own.addr);
	must(ioctl(member, SIOCSIFADDR, &own));
	must(change(member, IPV6_JOIN_ANYCAST, "fd77::5")), must(change(member, IPV6_JOIN_ANYCAST, "fd77::5"));
	must(change(member, IPV6_JOIN_ANYCAST, "fd77::6")), must(change(other, IPV6_JOIN_ANYCAST, "fd77::6"));

	freeze_here();
	spoil(must(change(member, IPV6_LEAVE_ANYCAST, "fd77::5")););

	same("the first address of the first", 2, times(member, "fd77::5"));
	same("its other", 1, times(member, "fd77::6"));
	same("that of the second", 1, times(other, "fd77::6"));
	same("what it has not", 0, times(other, "fd77::5"));
	same("what the last one has", 0, times(none, "fd77::5") + times(none, "fd77::6"));
	return report();
}

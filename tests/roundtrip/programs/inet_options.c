/* Each socket option that can be set and read: on sockets that are fresh, bound, listening or connected, of every kind of the internet's. */
// capabilities: CAP_NET_ADMIN CAP_NET_RAW
#include "wait.h"
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <net/if.h>

enum { UDPLITE = 136, RAW6 = 255, MOST = 600 };
struct kept { int fd, level, name; socklen_t length; unsigned char value[256]; };
static struct kept kept[MOST];
static int count;

static struct kept look(int fd, int level, int name) {
	struct kept found = {.fd = fd, .level = level, .name = name, .length = sizeof found.value};
	if (getsockopt(fd, level, name, found.value, &found.length) != 0)
		found.length = 0;
	return found;
}

static bool equal(const struct kept *one, const struct kept *other) {
	return one->length == other->length && !memcmp(one->value, other->value, one->length);
}

/* Set an option and note what is read then; a kernel that lacks it is fine, or allows it to nobody in a user namespace, and one that doesn't change shows nothing. */
static void set_bytes(int fd, int level, int name, const void *value, socklen_t length) {
	struct kept before = look(fd, level, name);
	if (setsockopt(fd, level, name, value, length) != 0) {
		if (errno != ENOPROTOOPT && errno != EOPNOTSUPP && errno != EPERM && errno != EACCES && !(level == IPPROTO_IP && name == 25 && errno == EINVAL)) /* IP_RECVFRAGSIZE is not TCP's */
			differs("line %d: option %d of level %d: %s", __LINE__, name, level, strerror(errno));
		return;
	}
	struct kept after = look(fd, level, name);
	if (equal(&before, &after))
		differs("option %d of level %d can't be read", name, level);
	kept[count++] = after;
}

static void set(int fd, int level, int name, int value) { set_bytes(fd, level, name, &value, sizeof value); }

/* Some are on at first. */
static void toggle(int fd, int level, int name) { set(fd, level, name, !look(fd, level, name).value[0]); }

static void set_general(int fd) {
	static const int flags[] = {1, 2, 5, 9, 10, 29, 40, 41, 43, 45, 60, 69, 75, 82};
	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
		toggle(fd, SOL_SOCKET, flags[i]);
	set(fd, SOL_SOCKET, SO_PRIORITY, 3);
	set(fd, SOL_SOCKET, SO_MARK, 0x42);
	set(fd, SOL_SOCKET, SO_BUSY_POLL, 50);
	set(fd, SOL_SOCKET, SO_PEEK_OFF, 0);
	set_bytes(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &(unsigned long){1000000}, 8);
	set_bytes(fd, SOL_SOCKET, SO_TXTIME, &(int[2]){CLOCK_MONOTONIC, 2}, 8);
	set_bytes(fd, SOL_SOCKET, SO_TIMESTAMPING, &(int[2]){0x18, 0}, 8);
}

static void set_ip(int fd) {
	static const int flags[] = {6, 7, 8, 11, 12, 13, 15, 18, 19, 20, 23, 24, 25, 26};
	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
		toggle(fd, IPPROTO_IP, flags[i]);
	set(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
	set(fd, IPPROTO_IP, IP_MINTTL, 3);
	set(fd, IPPROTO_IP, 51, 40000 | 40100 << 16); /* IP_LOCAL_PORT_RANGE */
	set_bytes(fd, IPPROTO_IP, IP_OPTIONS, (unsigned char[]){7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 12);
	set(fd, IPPROTO_IP, IP_UNICAST_IF, htonl(if_nametoindex("lo")));
}

static void set_ipv6(int fd) {
	static const int flags[] = {2, 3, 4, 5, 8, 11, 25, 31, 33, 49, 51, 53, 56, 58, 60, 62, 66, 70, 74, 77};
	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
		toggle(fd, IPPROTO_IPV6, flags[i]);
	set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO);
	set(fd, IPPROTO_IPV6, IPV6_MINHOPCOUNT, 2);
	set(fd, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, 2);
	set(fd, IPPROTO_IPV6, 76, htonl(if_nametoindex("lo"))); /* IPV6_UNICAST_IF */
	const unsigned char padding[] = {0, 0, 1, 4, 0, 0, 0, 0};
	set_bytes(fd, IPPROTO_IPV6, IPV6_HOPOPTS, padding, 8);
	set_bytes(fd, IPPROTO_IPV6, IPV6_DSTOPTS, padding, 8);
	set_bytes(fd, IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, padding, 8);
}

static void set_tcp(int fd) {
	static const int numbers[][2] = {{TCP_MAXSEG, 600}, {TCP_WINDOW_CLAMP, 9000}, {TCP_FASTOPEN, 5}, {TCP_FASTOPEN_NO_COOKIE, 1}, {TCP_TX_DELAY, 1000},
		{44, 5000}, {45, 52000}, {46, 20000}, {TCP_INQ, 1}, {TCP_SAVE_SYN, 1}, {TCP_DEFER_ACCEPT, 5}};
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
		set(fd, IPPROTO_TCP, numbers[i][0], numbers[i][1]);
	set(fd, SOL_SOCKET, 74, 0); /* SO_TXREHASH */
	set_bytes(fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, "0123456789abcdefghijklmnopqrstuv", 32);
}

static void bind_to(int fd, int family, int port) {
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	must(family == AF_INET ? bind(fd, (void *)&four, sizeof four) : bind(fd, (void *)&six, sizeof six));
}

int main(void) {
	for (int family = AF_INET, port = 5000; family; family = family == AF_INET ? AF_INET6 : 0) {
		int listening = must(socket(family, SOCK_STREAM, 0)), fresh = must(socket(family, SOCK_STREAM, 0)), udp = must(socket(family, SOCK_DGRAM, 0)),
			lite = socket(family, SOCK_DGRAM, UDPLITE), raw = must(socket(family, SOCK_RAW, 99)), wide = must(socket(family, SOCK_DGRAM, 0));
		int all[] = {listening, udp, lite, raw};
		for (int i = 0; i < 4; i++) {
			if (all[i] < 0)
				continue; /* newer kernels have no UDP-Lite */
			set_general(all[i]);
			set_ip(all[i]);
			if (family == AF_INET6)
				set_ipv6(all[i]);
		}
		set(fresh, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1);
		set(fresh, SOL_SOCKET, 63, 1); /* SO_TIMESTAMP_NEW */
		set_bytes(fresh, SOL_SOCKET, 65, &(int[2]){0x18, 0}, 8); /* SO_TIMESTAMPING_NEW */
		set(fresh, SOL_SOCKET, SO_INCOMING_CPU, 0);
		set_tcp(listening);
		bind_to(listening, family, port++);
		must(listen(listening, 3));
		set(udp, IPPROTO_UDP, 103, 1000); /* UDP_SEGMENT */
		set(udp, IPPROTO_UDP, 104, 1); /* UDP_GRO */
		set(udp, IPPROTO_UDP, 1, 1); /* UDP_CORK */
		set(udp, IPPROTO_UDP, 100, 2); /* UDP_ENCAP_ESPINUDP */
		bind_to(udp, family, port++);
		set_bytes(wide, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
		if (family == AF_INET6) {
			set(wide, IPPROTO_IPV6, IPV6_MULTICAST_IF, if_nametoindex("lo"));
			set(raw, IPPROTO_IPV6, IPV6_CHECKSUM, 6);
		} else {
			set(wide, IPPROTO_IP, IP_MULTICAST_IF, htonl(INADDR_LOOPBACK));
			set(raw, IPPROTO_IP, IP_NODEFRAG, 1);
			set(raw, IPPROTO_IP, IP_ROUTER_ALERT, 1);
		}
		if (lite >= 0) {
			set(lite, UDPLITE, 10, 8); /* UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV */
			set(lite, UDPLITE, 11, 12);
			bind_to(lite, family, port++);
		}
	}

	freeze_here();
	spoil(must(setsockopt(kept[0].fd, kept[0].level, kept[0].name, &(int){0}, sizeof(int))););

	for (int i = 0; i < count; i++) {
		struct kept found = look(kept[i].fd, kept[i].level, kept[i].name);
		if (!equal(&kept[i], &found))
			differs("descriptor %d, option %d of level %d: %d bytes that begin with %#x were %d that begin with %#x", found.fd, found.name, found.level,
				found.length, *(int *)found.value, kept[i].length, *(int *)kept[i].value);
	}
	return report();
}

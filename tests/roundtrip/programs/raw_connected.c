/* Raw and ICMP sockets that are connected, to no port, which getpeername(2) doesn't tell; options that only they take so; a TCP socket that
 * was taken from its peer (AF_UNSPEC), and connects again. */
// arguments: 4 | 6
// capabilities: CAP_NET_RAW CAP_NET_ADMIN
#include "wait.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } to;
static socklen_t size;

static void reaches(const char *what, int fd, bool six) {
	unsigned char ping[8] = {six ? 128 : 8, 0, 0xf7, 0xff}, answer[100];
	expect(send(fd, ping, sizeof ping, 0) == sizeof ping, "%s sends nothing: %s", what, strerror(errno));
	struct pollfd one = {.fd = fd, .events = POLLIN};
	expect(poll(&one, 1, 10000) == 1 && recv(fd, answer, sizeof answer, MSG_DONTWAIT) > 0, "%s hears nothing", what);
}

int main(int count, char **arguments) {
	bool six = count > 1 && !strcmp(arguments[1], "6");
	int family = six ? AF_INET6 : AF_INET, protocol = six ? IPPROTO_ICMPV6 : IPPROTO_ICMP, value = 0;
	size = six ? sizeof to.six : sizeof to.four;
	to.any.sa_family = family;
	if (six)
		to.six.sin6_addr = in6addr_loopback;
	else
		to.four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int raw = must(socket(family, SOCK_RAW, protocol)), other = must(socket(family, SOCK_RAW, 99)), icmp = socket(family, SOCK_DGRAM, protocol);
	must(connect(raw, &to.any, size));
	must(connect(other, &to.any, size));
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1)};
	int bound = must(socket(AF_INET, SOCK_RAW, 99)), optional = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(bound, (void *)&from, sizeof from));
	must(connect(bound, (void *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, sizeof from));
	must(setsockopt(optional, IPPROTO_IP, IP_OPTIONS, NULL, 0)); /* TCP_MAXSEG becomes what nobody may set */
	if (icmp >= 0) /* net.ipv4.ping_group_range */
		must(connect(icmp, &to.any, size));
	if (six) {
		must(setsockopt(raw, SOL_RAW, 7 /* IPV6_CHECKSUM */, &(int){6}, sizeof(int)));
		must(setsockopt(other, IPPROTO_IPV6, 30 /* IPV6_ROUTER_ALERT_ISOLATE */, &(int){1}, sizeof(int)));
	}
	int server = must(socket(family, SOCK_STREAM, 0)), again = must(socket(family, SOCK_STREAM, 0));
	to.four.sin_port = htons(7079); /* the same place in both */
	must(bind(server, &to.any, size));
	must(listen(server, 5));
	must(connect(again, &to.any, size));
	int first = must(accept(server, NULL, NULL));
	must(close(first));
	must(connect(again, &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));

	freeze_here();
	spoil(must(connect(raw, &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr))););

	expect(send(other, "12345678", 8, 0) == 8, "the other raw socket sends nothing: %s", strerror(errno));
	struct sockaddr_in name = {0};
	must(getsockname(bound, (void *)&name, &(socklen_t){sizeof name}));
	same("the address of a bound one", ntohl(from.sin_addr.s_addr), ntohl(name.sin_addr.s_addr));
	same("which TCP sockets there are", SOCK_STREAM, getsockopt(optional, SOL_SOCKET, SO_TYPE, &value, &(socklen_t){sizeof value}) ?: value);
	if (six) {
		must(getsockopt(raw, SOL_RAW, 7, &value, &(socklen_t){sizeof value}));
		same("IPV6_CHECKSUM", 6, value);
		must(getsockopt(other, IPPROTO_IPV6, 30, &value, &(socklen_t){sizeof value}));
		same("IPV6_ROUTER_ALERT_ISOLATE", 1, value);
		must(setsockopt(raw, SOL_RAW, 7, &(int){2}, sizeof(int)));
	}
	reaches("the raw socket", raw, six);
	if (icmp >= 0)
		reaches("the ICMP socket", icmp, six);
	socklen_t length = sizeof value;
	must(getsockopt(again, SOL_SOCKET, SO_ERROR, &value, &length));
	expect(connect(again, &to.any, size) == 0, "it can't connect again: %s", strerror(errno));
	int second = must(accept(server, NULL, NULL));
	must(send(again, "hello", 5, 0));
	char text[8];
	same("what comes", 5, recv(second, text, 8, 0));
	return report();
}

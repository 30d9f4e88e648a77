/* rtnetlink(7): requests, and how a network namespace is set up, as text. */
#pragma once
#include "lines.h"
#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

enum { ADD = NLM_F_CREATE | NLM_F_EXCL };

static struct { struct nlmsghdr head; char rest[8192]; } request;

static inline void *put(int type, const void *data, int length) {
	struct nlattr *one = (void *)((char *)&request + NLMSG_ALIGN(request.head.nlmsg_len));
	one->nla_type = type, one->nla_len = NLA_HDRLEN + length;
	if (length)
		memcpy((char *)one + NLA_HDRLEN, data, length);
	request.head.nlmsg_len = NLMSG_ALIGN(request.head.nlmsg_len) + NLA_ALIGN(one->nla_len);
	return one;
}
static inline void put8(int type, uint8_t value) { put(type, &value, 1); }
static inline void put16(int type, uint16_t value) { put(type, &value, 2); }
static inline void put32(int type, uint32_t value) { put(type, &value, 4); }
static inline void put_text(int type, const char *text) { put(type, text, strlen(text) + 1); }
static inline void put_ip(int type, const char *text) {
	char address[16];
	int six = strchr(text, ':') != NULL;
	inet_pton(six ? AF_INET6 : AF_INET, text, address);
	put(type, address, six ? 16 : 4);
}
static inline struct nlattr *nest(int type) { return put(type | NLA_F_NESTED, NULL, 0); }
static inline void end(struct nlattr *one) { one->nla_len = (char *)&request + request.head.nlmsg_len - (char *)one; }
static inline void begin(int type, int flags, const void *header, int length) {
	memset(&request, 0, sizeof request);
	request.head = (struct nlmsghdr){.nlmsg_len = NLMSG_LENGTH(length), .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags};
	memcpy(request.rest, header, length);
}

static int routing = -1;

static inline int route_socket(void) {
	if (routing < 0)
		routing = must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	return routing;
}
static inline void close_routing(void) { close(routing), routing = -1; }

/* Send the request; the kernel's error, or 0. */
static inline int try(void) {
	static char answer[8192] __attribute__((aligned(8)));
	struct nlmsghdr *head = (void *)answer;
	must(send(route_socket(), &request, request.head.nlmsg_len, 0));
	do
		must(recv(route_socket(), answer, sizeof answer, 0));
	while (head->nlmsg_type != NLMSG_ERROR);
	errno = -((struct nlmsgerr *)NLMSG_DATA(head))->error;
	return errno ? -1 : 0;
}
#define ask() must(try())

static inline int index_of(const char *name) { return must((int)if_nametoindex(name) ?: -1); }

/* A new device's request, up to the data of its kind; `made` ends and sends it. */
static struct nlattr *info, *inner;
static inline void new_link(const char *name, const char *kind, int index) {
	begin(RTM_NEWLINK, ADD, &(struct ifinfomsg){.ifi_index = index}, sizeof(struct ifinfomsg));
	put_text(IFLA_IFNAME, name);
	info = nest(IFLA_LINKINFO);
	put_text(IFLA_INFO_KIND, kind);
	inner = nest(IFLA_INFO_DATA);
}
static inline void made(void) { end(inner), end(info), ask(); }
static inline void set_link(const char *name, unsigned flags, unsigned change) {
	begin(RTM_NEWLINK, 0, &(struct ifinfomsg){.ifi_index = index_of(name), .ifi_flags = flags, .ifi_change = change}, sizeof(struct ifinfomsg));
}
static inline void up(const char *name) { set_link(name, IFF_UP, IFF_UP), ask(); }
static inline void enslave(const char *name, const char *master) { set_link(name, 0, 0), put32(IFLA_MASTER, index_of(master)), ask(); }

static inline void new_veth(const char *name, int index, const char *peer, int peer_index) {
	new_link(name, "veth", index);
	struct nlattr *other = nest(VETH_INFO_PEER);
	struct ifinfomsg head = {.ifi_index = peer_index};
	memcpy((char *)&request + request.head.nlmsg_len, &head, sizeof head);
	request.head.nlmsg_len += sizeof head;
	put_text(IFLA_IFNAME, peer);
	end(other), made();
}

static inline void address(const char *device, const char *text, int prefix) {
	int six = strchr(text, ':') != NULL;
	begin(RTM_NEWADDR, ADD, &(struct ifaddrmsg){.ifa_family = six ? AF_INET6 : AF_INET, .ifa_prefixlen = prefix, .ifa_index = index_of(device)}, sizeof(struct ifaddrmsg));
	put_ip(IFA_LOCAL, text), put_ip(IFA_ADDRESS, text);
	if (six)
		put32(IFA_FLAGS, IFA_F_NODAD);
}

/* A route's request, to be completed. */
static inline void route(const char *target, int prefix, int type, int table) {
	int six = strchr(target, ':') != NULL;
	begin(RTM_NEWROUTE, ADD, &(struct rtmsg){.rtm_family = six ? AF_INET6 : AF_INET, .rtm_dst_len = prefix, .rtm_table = table < 256 ? table : 0,
		.rtm_protocol = RTPROT_STATIC, .rtm_type = type}, sizeof(struct rtmsg));
	put32(RTA_TABLE, table);
	if (prefix)
		put_ip(RTA_DST, target);
}

/* All that is set up, a line each. What changes by itself is left out: states, timers, counts. */
struct world { int count; char lines[400][2000]; };

static inline int is_fleeting(int type, const char *path, int number) {
	if (type == RTM_NEWLINK && !*path)
		return number == IFLA_STATS || number == IFLA_STATS64 || number == 47 || number == 48 || number == IFLA_CARRIER_CHANGES || number == IFLA_OPERSTATE ||
			number == IFLA_CARRIER || number == IFLA_QDISC || number == IFLA_PROMISCUITY || number == 61 || number == IFLA_PROTO_DOWN || number == IFLA_MAP || number == IFLA_EVENT || number == IFLA_NUM_VF;
	if (type == RTM_NEWLINK && !strcmp(path, "/18/2")) /* a bridge's timers, and what is told to other bridges */
		return (number >= 10 && number <= 19) || number == IFLA_BR_MCAST_QUERIER_STATE || number == 48;
	if (type == RTM_NEWLINK && !strcmp(path, "/18/5"))
		return number == 1 || (number >= 13 && number <= 23);
	if (type == RTM_NEWLINK && !strcmp(path, "/26/10"))
		return number != 7 && number != 8;
	if (type == RTM_NEWLINK && !strncmp(path, "/26", 3) && path[3])
		return number != 1 && number != 10 && number != 2;
	if (type == RTM_NEWLINK && !strcmp(path, "/18") && number == 3)
		return 1;
	return (type == RTM_NEWADDR && number == IFA_CACHEINFO) || (type == RTM_NEWROUTE && number == RTA_CACHEINFO) ||
		(type == RTM_NEWNEIGH && (number == NDA_CACHEINFO || number == NDA_PROBES));
}

static inline int is_nest(int type, const char *path, int number) {
	return type == RTM_NEWLINK && (number == IFLA_LINKINFO || number == IFLA_AF_SPEC) && !*path ? 1 :
		type == RTM_NEWLINK && !strcmp(path, "/18") && (number == IFLA_INFO_DATA || number == IFLA_INFO_SLAVE_DATA) ? 1 :
		type == RTM_NEWLINK && !strcmp(path, "/26") && number == AF_INET6;
}

static inline char *write_attributes(char *at, char *most, int type, const char *path, const void *data, int length) {
	for (const struct nlattr *one = data; length >= NLA_HDRLEN; length -= NLA_ALIGN(one->nla_len), one = (void *)((char *)one + NLA_ALIGN(one->nla_len))) {
		int number = one->nla_type & NLA_TYPE_MASK, size = one->nla_len - NLA_HDRLEN;
		const unsigned char *value = (void *)((char *)one + NLA_HDRLEN);
		if (is_fleeting(type, path, number))
			continue;
		at += snprintf(at, most - at, " %d=", number);
		if (is_nest(type, path, number)) {
			char deeper[100];
			snprintf(deeper, sizeof deeper, "%s/%d", path, number);
			at += snprintf(at, most - at, "[");
			at = write_attributes(at, most, type, deeper, value, size);
			at += snprintf(at, most - at, "]");
		} else
			for (int i = 0; i < size; i++)
				at += snprintf(at, most - at, "%02x", value[i]);
	}
	return at;
}

static inline void read_kind(struct world *into, int type, int family, int size, int proxies) {
	static char answer[1 << 17] __attribute__((aligned(8)));
	char header[32] = {family};
	header[10] = proxies ? NTF_PROXY : 0;
	begin(type + 2, NLM_F_DUMP, header, size);
	must(send(route_socket(), &request, request.head.nlmsg_len, 0));
	for (int more = 1; more;) {
		int got = must(recv(route_socket(), answer, sizeof answer, 0));
		for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, (unsigned)got); one = NLMSG_NEXT(one, got)) {
			unsigned char *body = NLMSG_DATA(one);
			if (one->nlmsg_type == NLMSG_DONE || one->nlmsg_type == NLMSG_ERROR) {
				more = 0;
				break;
			}
			if (type == RTM_NEWLINK)
				((struct ifinfomsg *)body)->ifi_flags &= ~(IFF_RUNNING | 0x10000);
			if (type == RTM_NEWROUTE)
				((struct rtmsg *)body)->rtm_flags &= ~(RTNH_F_LINKDOWN | RTNH_F_DEAD);
			if (type == RTM_NEWNEIGH && !(((struct ndmsg *)body)->ndm_state & (NUD_PERMANENT | NUD_NOARP)) && !proxies)
				continue;
			/* which packets for multicasts a device takes in, and how they are sent: follows from other things */
			if (type == RTM_NEWNEIGH && family != AF_BRIDGE && ((struct ndmsg *)body)->ndm_state & NUD_NOARP)
				continue;
			if (family == AF_BRIDGE && !memcmp(body + size + 4, "\x33\x33", 2))
				continue;
			char *line = into->lines[into->count++], *at = line + sprintf(line, "%d:", type);
			for (int i = 0; i < size; i++)
				at += sprintf(at, "%02x", body[i]);
			write_attributes(at, line + 1990, type, "", body + size, one->nlmsg_len - NLMSG_HDRLEN - size);
		}
	}
}

static inline int by_line(const void *one, const void *other) { return strcmp(one, other); }

static inline void read_world(struct world *into) {
	into->count = 0;
	read_kind(into, RTM_NEWLINK, 0, sizeof(struct ifinfomsg), 0);
	read_kind(into, RTM_NEWADDR, 0, sizeof(struct ifaddrmsg), 0);
	read_kind(into, RTM_NEWROUTE, AF_INET, sizeof(struct rtmsg), 0);
	read_kind(into, RTM_NEWROUTE, AF_INET6, sizeof(struct rtmsg), 0);
	read_kind(into, RTM_NEWRULE, AF_INET, sizeof(struct fib_rule_hdr), 0);
	read_kind(into, RTM_NEWRULE, AF_INET6, sizeof(struct fib_rule_hdr), 0);
	read_kind(into, RTM_NEWNEIGH, 0, sizeof(struct ndmsg), 0);
	read_kind(into, RTM_NEWNEIGH, 0, sizeof(struct ndmsg), 1);
	read_kind(into, RTM_NEWNEIGH, AF_BRIDGE, sizeof(struct ndmsg), 0);
	read_kind(into, RTM_NEWNEXTHOP, 0, sizeof(struct nhmsg), 0);
	qsort(into->lines, into->count, sizeof into->lines[0], by_line);
}

static inline void expect_same_world(const struct world *was, const struct world *is) {
	expect_same_lines(was->lines[0], was->count, is->lines[0], is->count, sizeof was->lines[0]);
}

/* Wait until devices with a carrier have addresses: none comes for a while, and none is tentative any more. */
static inline void settle(void) {
	static char last[1 << 14], found[1 << 14];
	for (int quiet = 0, naps = 0; quiet < 30 && naps < 6000; naps++) {
		int waits = 0;
		FILE *file = fopen("/proc/self/net/if_inet6", "r");
		found[file ? fread(found, 1, sizeof found - 1, file) : 0] = 0;
		if (file)
			fclose(file);
		for (char *line = found; *line; line = strchrnul(line, '\n'), line += *line == '\n') {
			unsigned flags = 0;
			sscanf(line, "%*s %*x %*x %*x %x", &flags);
			waits |= flags & IFA_F_TENTATIVE;
		}
		quiet = waits || strcmp(found, last) ? 0 : quiet + 1;
		strcpy(last, found);
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
}

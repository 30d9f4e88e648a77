/* What was set up in the network namespace: devices, addresses, routes, rules, neighbours; packets still go their way. */
// arguments: veth | bridge | macvlan | vxlan | ifb | tap | addresses | routes | hops | rules | neighbours | loopback | settings
// capabilities: CAP_NET_ADMIN
#include "network.h"
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

static struct world was, is;
static int held = -1;
static char path[100];
static const char *const settings[][2] = {
	{"ipv6/conf/all/addr_gen_mode", "1"},
	{"ipv6/conf/default/addr_gen_mode", "0"},
	{"ipv4/conf/left/rp_filter", "2"},
	{"ipv6/conf/right/disable_ipv6", "1"},
	{"ipv6/conf/right/stable_secret", "2001:0db8:0000:0000:0000:0000:0000:0001"},
	{"ipv4/neigh/lo/gc_stale_time", "99"}, /* new ones don't have what lo has */
	{"ipv4/neigh/right/gc_stale_time", "99"},
	{"core/xfrm_aevent_etime", "33"},
};
#define SETTINGS (int)(sizeof settings / sizeof *settings)

/* The kernel shows some of them to nobody in a user namespace. */
static bool is_hidden(const char *path) {
	char map[100] = "";
	int file = must(open("/proc/self/uid_map", O_RDONLY));
	must(read(file, map, 99)), close(file);
	return !strstr(map, "4294967295") && access(path, F_OK) < 0;
}

/* Two ends with an address each. */
static void pair(void) {
	new_veth("left", 0, "right", 0);
	up("left"), up("right");
	address("left", "10.1.0.1", 24), ask();
	address("left", "fd00::1", 64), ask();
}

static void make(const char *what) {
	if (!strcmp(what, "veth")) {
		new_veth("left", 0, "right", 0);
		set_link("left", 0, 0), put(IFLA_ADDRESS, "\2\1\2\3\4\5", 6), put32(IFLA_MTU, 1400), ask();
		up("left"), up("right");
		address("left", "10.1.0.1", 24), ask();
	} else if (!strcmp(what, "bridge")) {
		new_link("br0", "bridge", 70);
		put32(IFLA_BR_FORWARD_DELAY, 500), put32(IFLA_BR_AGEING_TIME, 12300), put16(IFLA_BR_PRIORITY, 77), put32(IFLA_BR_STP_STATE, 1);
		put8(IFLA_BR_MCAST_SNOOPING, 0), put16(IFLA_BR_GROUP_FWD_MASK, 8);
		made();
		new_veth("left", 71, "port", 72);
		new_link("br1", "bridge", 73), made();
		enslave("port", "br0");
		set_link("port", 0, 0);
		struct nlattr *all = nest(IFLA_LINKINFO);
		put_text(IFLA_INFO_SLAVE_KIND, "bridge");
		struct nlattr *port = nest(IFLA_INFO_SLAVE_DATA);
		put16(IFLA_BRPORT_PRIORITY, 5), put32(IFLA_BRPORT_COST, 123), put8(IFLA_BRPORT_MODE, 1), put8(IFLA_BRPORT_ISOLATED, 1);
		end(port), end(all), ask();
		up("left"), up("port"), up("br0");
		address("br0", "10.2.0.1", 24), ask();
		begin(RTM_NEWNEIGH, ADD, &(struct ndmsg){.ndm_family = AF_BRIDGE, .ndm_ifindex = 72, .ndm_state = NUD_NOARP, .ndm_flags = NTF_MASTER}, sizeof(struct ndmsg));
		put(NDA_LLADDR, "\2\1\1\1\1\1", 6), ask();
	} else if (!strcmp(what, "macvlan")) {
		new_veth("left", 0, "right", 0);
		new_link("mac0", "macvlan", 0);
		put32(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE);
		end(inner), end(info), put32(IFLA_LINK, index_of("left")), ask();
		new_link("mac1", "macvlan", 0);
		put32(IFLA_MACVLAN_MODE, MACVLAN_MODE_SOURCE), put32(IFLA_MACVLAN_MACADDR_MODE, MACVLAN_MACADDR_SET);
		struct nlattr *sources = nest(IFLA_MACVLAN_MACADDR_DATA);
		put(IFLA_MACVLAN_MACADDR, "\2\3\3\3\3\3", 6), end(sources);
		end(inner), end(info), put32(IFLA_LINK, index_of("left")), ask();
		up("left"), up("right"), up("mac0");
		address("mac0", "10.3.0.1", 24), ask();
	} else if (!strcmp(what, "vxlan")) {
		pair();
		new_link("vx0", "vxlan", 0);
		put32(IFLA_VXLAN_ID, 42), put16(IFLA_VXLAN_PORT, htons(4789)), put32(IFLA_VXLAN_LINK, index_of("left")), put_ip(IFLA_VXLAN_LOCAL, "10.1.0.1");
		put8(IFLA_VXLAN_TTL, 9), put8(IFLA_VXLAN_LEARNING, 0);
		made();
		up("vx0");
		begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_APPEND, &(struct ndmsg){.ndm_family = AF_BRIDGE, .ndm_ifindex = index_of("vx0"), .ndm_state = NUD_NOARP | NUD_PERMANENT,
			.ndm_flags = NTF_SELF}, sizeof(struct ndmsg));
		put(NDA_LLADDR, "\0\0\0\0\0\0", 6), put_ip(NDA_DST, "10.1.0.9"), ask();
		address("vx0", "10.4.0.1", 24), ask();
	} else if (!strcmp(what, "ifb")) {
		new_link("ifb7", "ifb", 0);
		end(inner), end(info), put32(IFLA_TXQLEN, 77), put32(IFLA_MTU, 1234), put32(IFLA_GROUP, 9), put(IFLA_ADDRESS, "\2\7\7\7\7\7", 6), ask();
		set_link("ifb7", IFF_NOARP | IFF_PROMISC | IFF_ALLMULTI, IFF_NOARP | IFF_PROMISC | IFF_ALLMULTI | IFF_MULTICAST);
		put_text(IFLA_IFALIAS, "an alias"), ask();
		begin(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_APPEND | NLM_F_EXCL, &(struct ifinfomsg){.ifi_index = index_of("ifb7")}, sizeof(struct ifinfomsg));
		struct nlattr *names = nest(IFLA_PROP_LIST);
		put_text(IFLA_ALT_IFNAME, "a name that is longer than others"), put_text(IFLA_ALT_IFNAME, "another"), end(names), ask();
		up("ifb7");
	} else if (!strcmp(what, "tap")) {
		must(mkdir("/dev/net", 0755)), must(mknod("/dev/net/tun", S_IFCHR | 0666, makedev(10, 200)));
		int tap = must(open("/dev/net/tun", O_RDWR));
		struct ifreq name = {.ifr_name = "tap3", .ifr_flags = IFF_TAP | IFF_NO_PI};
		must(ioctl(tap, TUNSETIFF, &name)), must(ioctl(tap, TUNSETOWNER, 7)), must(ioctl(tap, TUNSETPERSIST, 1));
		close(tap);
		up("tap3");
		address("tap3", "10.5.0.1", 24), ask();
	} else if (!strcmp(what, "addresses")) {
		new_veth("left", 0, "right", 0);
		up("left"), up("right");
		address("left", "10.1.0.1", 24), put_ip(IFA_BROADCAST, "10.1.0.255"), put_text(IFA_LABEL, "left:x"), ask();
		address("left", "10.1.0.2", 24), ask();
		address("left", "10.1.9.1", 24), put32(IFA_FLAGS, IFA_F_NOPREFIXROUTE), put32(IFA_RT_PRIORITY, 7), ask();
		address("left", "10.1.8.1", 32), ((struct ifaddrmsg *)request.rest)->ifa_scope = RT_SCOPE_HOST, ask();
		address("right", "10.6.0.1", 24), ((struct ifaddrmsg *)request.rest)->ifa_prefixlen = 32, ask();
		address("left", "fd00::5", 64), put(IFA_CACHEINFO, &(struct ifa_cacheinfo){.ifa_prefered = 3000, .ifa_valid = 5000}, sizeof(struct ifa_cacheinfo)), ask();
		address("left", "fd00::6", 128), ask();
		address("lo", "10.7.7.7", 32), ask();
	} else if (!strcmp(what, "routes")) {
		pair();
		route("10.20.0.0", 16, RTN_UNICAST, RT_TABLE_MAIN), put_ip(RTA_GATEWAY, "10.1.0.2"), put32(RTA_PRIORITY, 50), put_ip(RTA_PREFSRC, "10.1.0.1"), ask();
		route("0.0.0.0", 0, RTN_UNICAST, RT_TABLE_MAIN), put_ip(RTA_GATEWAY, "10.1.0.3");
		struct nlattr *metrics = nest(RTA_METRICS);
		put32(RTAX_MTU, 1300), put32(RTAX_INITCWND, 20), put_text(RTAX_CC_ALGO, "cubic"), end(metrics), ask();
		route("10.21.0.0", 16, RTN_UNREACHABLE, RT_TABLE_MAIN), ask();
		route("10.22.0.0", 16, RTN_BLACKHOLE, 1234567), ask();
		route("10.23.0.0", 16, RTN_PROHIBIT, 7), ask();
		route("10.24.0.0", 16, RTN_UNICAST, 7), put32(RTA_OIF, index_of("right")), ask();
		route("10.26.0.0", 16, RTN_UNICAST, 7), put_ip(RTA_GATEWAY, "10.99.0.1"), put32(RTA_OIF, index_of("right")), ((struct rtmsg *)request.rest)->rtm_flags = RTNH_F_ONLINK, ask();
		route("10.25.0.0", 16, RTN_UNICAST, RT_TABLE_MAIN);
		struct nlattr *hops = nest(RTA_MULTIPATH);
		for (int i = 0; i < 2; i++) {
			struct rtnexthop *hop = (void *)((char *)&request + request.head.nlmsg_len);
			*hop = (struct rtnexthop){.rtnh_hops = i, .rtnh_ifindex = index_of("left"), .rtnh_len = sizeof *hop + 8};
			request.head.nlmsg_len += sizeof *hop;
			put_ip(RTA_GATEWAY, i ? "10.1.0.5" : "10.1.0.4");
		}
		end(hops), ask();
		route("fd11::", 16, RTN_UNICAST, RT_TABLE_MAIN), put_ip(RTA_GATEWAY, "fd00::9"), ask();
		route("fd12::", 16, RTN_UNICAST, 9), put32(RTA_OIF, index_of("left")), put32(RTA_EXPIRES, 5000), ask();
		route("fd13::", 16, RTN_UNREACHABLE, RT_TABLE_MAIN), ask();
		/* one that comes by itself, taken away */
		begin(RTM_DELROUTE, 0, &(struct rtmsg){.rtm_family = AF_INET6, .rtm_dst_len = 64, .rtm_table = RT_TABLE_MAIN}, sizeof(struct rtmsg));
		put_ip(RTA_DST, "fd00::"), put32(RTA_OIF, index_of("left")), try();
	} else if (!strcmp(what, "hops")) {
		pair();
		for (int i = 1; i <= 3; i++) {
			begin(RTM_NEWNEXTHOP, ADD, &(struct nhmsg){.nh_family = AF_INET, .nh_protocol = RTPROT_STATIC}, sizeof(struct nhmsg));
			put32(NHA_ID, i);
			if (i < 3)
				put32(NHA_OIF, index_of("left")), put_ip(NHA_GATEWAY, i == 1 ? "10.1.0.2" : "10.1.0.3");
			else
				put(NHA_BLACKHOLE, NULL, 0);
			ask();
		}
		begin(RTM_NEWNEXTHOP, ADD, &(struct nhmsg){.nh_protocol = RTPROT_STATIC}, sizeof(struct nhmsg));
		put32(NHA_ID, 9), put(NHA_GROUP, (struct nexthop_grp[]){{.id = 1, .weight = 3}, {.id = 2}}, 16), ask();
		route("10.30.0.0", 16, RTN_UNICAST, RT_TABLE_MAIN), put32(RTA_NH_ID, 9), ask();
		route("10.31.0.0", 16, RTN_UNICAST, RT_TABLE_MAIN), put32(RTA_NH_ID, 3), ask();
	} else if (!strcmp(what, "rules")) {
		begin(RTM_NEWRULE, ADD, &(struct fib_rule_hdr){.family = AF_INET, .table = 9, .src_len = 24, .tos = 0x10, .action = FR_ACT_TO_TBL, .flags = FIB_RULE_INVERT}, sizeof(struct fib_rule_hdr));
		put_ip(FRA_SRC, "10.8.0.0"), put32(FRA_PRIORITY, 100), put32(FRA_FWMARK, 5), put32(FRA_FWMASK, 0xff), put_text(FRA_IIFNAME, "nowhere"), ask();
		begin(RTM_NEWRULE, ADD, &(struct fib_rule_hdr){.family = AF_INET6, .action = FR_ACT_PROHIBIT}, sizeof(struct fib_rule_hdr));
		put32(FRA_PRIORITY, 200), put(FRA_SPORT_RANGE, &(struct fib_rule_port_range){10, 20}, 4), put8(FRA_IP_PROTO, 6), put8(FRA_PROTOCOL, 77), ask();
		begin(RTM_NEWRULE, ADD, &(struct fib_rule_hdr){.family = AF_INET, .action = FR_ACT_GOTO}, sizeof(struct fib_rule_hdr));
		put32(FRA_PRIORITY, 300), put32(FRA_GOTO, 400), put(FRA_UID_RANGE, &(struct fib_rule_uid_range){5, 9}, 8), ask();
		begin(RTM_NEWRULE, ADD, &(struct fib_rule_hdr){.family = AF_INET, .table = 254, .action = FR_ACT_TO_TBL}, sizeof(struct fib_rule_hdr));
		put32(FRA_PRIORITY, 400), put32(FRA_TABLE, 254), put32(FRA_SUPPRESS_PREFIXLEN, 8), ask();
		begin(RTM_DELRULE, 0, &(struct fib_rule_hdr){.family = AF_INET, .action = FR_ACT_TO_TBL}, sizeof(struct fib_rule_hdr));
		put32(FRA_PRIORITY, 32767), ask();
	} else if (!strcmp(what, "neighbours")) {
		pair();
		begin(RTM_NEWNEIGH, ADD, &(struct ndmsg){.ndm_family = AF_INET, .ndm_ifindex = index_of("left"), .ndm_state = NUD_PERMANENT}, sizeof(struct ndmsg));
		put_ip(NDA_DST, "10.1.0.77"), put(NDA_LLADDR, "\2\4\4\4\4\4", 6), put8(NDA_PROTOCOL, 33), ask();
		begin(RTM_NEWNEIGH, ADD, &(struct ndmsg){.ndm_family = AF_INET6, .ndm_ifindex = index_of("left"), .ndm_state = NUD_PERMANENT, .ndm_flags = NTF_ROUTER}, sizeof(struct ndmsg));
		put_ip(NDA_DST, "fd00::77"), put(NDA_LLADDR, "\2\4\4\4\4\5", 6), ask();
		begin(RTM_NEWNEIGH, ADD, &(struct ndmsg){.ndm_family = AF_INET, .ndm_ifindex = index_of("right"), .ndm_flags = NTF_PROXY}, sizeof(struct ndmsg));
		put_ip(NDA_DST, "10.1.0.78"), ask();
		begin(RTM_NEWNEIGH, ADD, &(struct ndmsg){.ndm_family = AF_INET, .ndm_ifindex = index_of("left"), .ndm_state = NUD_NOARP}, sizeof(struct ndmsg));
		put_ip(NDA_DST, "10.1.0.79"), put(NDA_LLADDR, "\2\4\4\4\4\6", 6), ask();
	} else if (!strcmp(what, "loopback")) {
		begin(RTM_DELADDR, 0, &(struct ifaddrmsg){.ifa_family = AF_INET6, .ifa_prefixlen = 128, .ifa_index = 1}, sizeof(struct ifaddrmsg));
		put_ip(IFA_LOCAL, "::1"), put_ip(IFA_ADDRESS, "::1"), ask();
		address("lo", "127.5.5.5", 16), ask();
		address("lo", "fd77::1", 128), ask();
		set_link("lo", IFF_PROMISC, IFF_PROMISC), put32(IFLA_MTU, 9000), ask();
	} else if (!strcmp(what, "settings")) {
		pair();
		for (int i = 0; i < SETTINGS; i++) {
			sprintf(path, "/proc/sys/net/%s", settings[i][0]);
			if (is_hidden(path))
				continue;
			int file = must(open(path, O_WRONLY));
			must(write(file, settings[i][1], strlen(settings[i][1]))), close(file);
		}
	}
}

static void look(const char *path, const char *text) {
	char found[100] = "";
	int file = must(open(path, O_RDONLY));
	must(read(file, found, 99)), close(file);
	expect(!strncmp(found, text, strlen(text)), "%s holds %s", path, found);
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "veth";
	make(what);
	if (!strcmp(what, "routes")) { /* what is bound to an address stays so */
		held = must(socket(AF_INET6, SOCK_DGRAM, 0));
		struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_port = htons(77)};
		inet_pton(AF_INET6, "fd00::1", &name.sin6_addr);
		must(bind(held, (void *)&name, sizeof name));
	}
	settle();
	read_world(&was);
	freeze_here();
	spoil(address("lo", "10.66.0.1", 32), ask(););
	read_world(&is);
	expect_same_world(&was, &is);
	if (!strcmp(what, "settings")) {
		for (int i = 0; i < SETTINGS; i++) {
			sprintf(path, "/proc/sys/net/%s", settings[i][0]);
			if (!is_hidden(path))
				look(path, settings[i][1]);
		}
	}
	return report();
}

/* Lasting members of multicast groups at the ports of a bridge, and at the bridge; what MPTCP tells peers of, and its limits. */
// arguments: bridge | mptcp
// capabilities: CAP_NET_ADMIN
#include "network.h"
#include <linux/genetlink.h>
#include <linux/mptcp.h>

static char was[4000], is[4000], first[1000] __attribute__((aligned(8))), answer[1 << 16] __attribute__((aligned(8)));
static int generic, family;

static void member(const char *port, const char *group, const char *source) {
	struct br_mdb_entry entry = {.ifindex = index_of(port), .state = MDB_PERMANENT, .addr.proto = htons(strchr(group, ':') ? 0x86dd : strchr(group, '.') ? 0x0800 : 0)};
	if (entry.addr.proto)
		inet_pton(strchr(group, ':') ? AF_INET6 : AF_INET, group, &entry.addr.u);
	else
		memcpy(entry.addr.u.mac_addr, "\1\0\x5e\0\0\5", 6);
	begin(RTM_NEWMDB, ADD, &(struct br_port_msg){.family = AF_BRIDGE, .ifindex = index_of("br0")}, sizeof(struct br_port_msg));
	put(MDBA_SET_ENTRY, &entry, sizeof entry);
	if (source) {
		struct nlattr *more = nest(MDBA_SET_ENTRY_ATTRS);
		put_ip(MDBE_ATTR_SOURCE, source), end(more);
	}
	ask();
}

static void command(int number, int flags) {
	begin(family, flags, &(struct genlmsghdr){.cmd = number, .version = 1}, sizeof(struct genlmsghdr));
}

/* Send what was begun, and add each answer's bytes to a text; how many there were. */
static int told(int on, int type, int skip, char *text) {
	int count = 0;
	must(send(on, &request, request.head.nlmsg_len, 0));
	for (;;) {
		int got = must(recv(on, answer, sizeof answer, 0));
		for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, (unsigned)got); one = NLMSG_NEXT(one, got)) {
			unsigned char *body = NLMSG_DATA(one);
			if (one->nlmsg_type == NLMSG_DONE || one->nlmsg_type == NLMSG_ERROR) {
				int error = one->nlmsg_type == NLMSG_ERROR ? *(int *)body : 0;
				errno = -error;
				must(error ? -1 : 0);
				return count;
			}
			if (one->nlmsg_type != type)
				continue;
			if (!count++)
				memcpy(first, body, one->nlmsg_len - NLMSG_HDRLEN < 1000 ? one->nlmsg_len - NLMSG_HDRLEN : 1000);
			for (unsigned i = skip; text && i < one->nlmsg_len - NLMSG_HDRLEN; i++)
				text += sprintf(text, "%02x", body[i]);
		}
	}
}

static void endpoint(const char *address, int id, int flags, const char *device, int port) {
	command(MPTCP_PM_CMD_ADD_ADDR, NLM_F_ACK);
	struct nlattr *one = nest(MPTCP_PM_ATTR_ADDR);
	int six = strchr(address, ':') != NULL;
	put16(MPTCP_PM_ADDR_ATTR_FAMILY, six ? AF_INET6 : AF_INET), put8(MPTCP_PM_ADDR_ATTR_ID, id), put32(MPTCP_PM_ADDR_ATTR_FLAGS, flags);
	put_ip(six ? MPTCP_PM_ADDR_ATTR_ADDR6 : MPTCP_PM_ADDR_ATTR_ADDR4, address);
	if (device)
		put32(MPTCP_PM_ADDR_ATTR_IF_IDX, index_of(device));
	if (port)
		put16(MPTCP_PM_ADDR_ATTR_PORT, port);
	end(one), told(generic, 0, 0, NULL);
}

static void look(int mptcp, char *text) {
	if (mptcp) {
		command(MPTCP_PM_CMD_GET_ADDR, NLM_F_DUMP);
		same("endpoints", 3, told(generic, family, 4, text));
		command(MPTCP_PM_CMD_GET_LIMITS, NLM_F_ACK), told(generic, family, 4, text + strlen(text));
	} else {
		begin(RTM_GETMDB, NLM_F_DUMP, &(struct br_port_msg){.family = AF_BRIDGE}, sizeof(struct br_port_msg));
		told(route_socket(), RTM_GETMDB, 0, text);
	}
}

int main(int count, char **arguments) {
	int mptcp = count > 1 && !strcmp(arguments[1], "mptcp");
	new_veth("left", 0, "port", 0);
	set_link("lo", IFF_UP, IFF_UP), ask();
	if (mptcp) {
		generic = must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC));
		family = GENL_ID_CTRL;
		command(CTRL_CMD_GETFAMILY, NLM_F_ACK), put_text(CTRL_ATTR_FAMILY_NAME, MPTCP_PM_NAME);
		told(generic, GENL_ID_CTRL, 0, NULL);
		struct nlattr *one = (void *)(first + GENL_HDRLEN);
		while (one->nla_type != CTRL_ATTR_FAMILY_ID)
			one = (void *)((char *)one + NLA_ALIGN(one->nla_len));
		family = *(uint16_t *)((char *)one + NLA_HDRLEN);
		endpoint("10.1.0.5", 7, MPTCP_PM_ADDR_FLAG_SUBFLOW | MPTCP_PM_ADDR_FLAG_BACKUP, "left", 0);
		endpoint("127.0.0.1", 3, MPTCP_PM_ADDR_FLAG_SIGNAL, NULL, 5000);
		endpoint("fd00::5", 9, MPTCP_PM_ADDR_FLAG_SUBFLOW, NULL, 0);
		command(MPTCP_PM_CMD_SET_LIMITS, NLM_F_ACK), put32(MPTCP_PM_ATTR_RCV_ADD_ADDRS, 4), put32(MPTCP_PM_ATTR_SUBFLOWS, 3), told(generic, 0, 0, NULL);
	} else {
		new_link("br0", "bridge", 0), made();
		enslave("port", "br0");
		/* Without IPv6 nobody joins a group by itself. */
		const char *const settings[] = {"left", "port", "br0"};
		char path[64];
		for (int i = 0; i < 3; i++) {
			sprintf(path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", settings[i]);
			int file = must(open(path, O_WRONLY));
			must(write(file, "1", 1)), close(file);
		}
		up("left"), up("port"), up("br0");
		member("port", "239.1.1.1", NULL), member("port", "ff05::1", NULL), member("port", "239.1.1.7", "10.0.0.5"), member("port", "a MAC", NULL);
		member("br0", "a MAC", NULL);
		usleep(100000); /* it becomes a forwarding port */
	}
	look(mptcp, was);
	freeze_here();
	spoil(if (mptcp) command(MPTCP_PM_CMD_SET_LIMITS, NLM_F_ACK), put32(MPTCP_PM_ATTR_RCV_ADD_ADDRS, 0), put32(MPTCP_PM_ATTR_SUBFLOWS, 0), told(generic, 0, 0, NULL);
		else member("port", "239.9.9.9", NULL););
	look(mptcp, is);
	expect(strlen(was) > 50 && !strcmp(was, is), "%s has become %s", was, is);
	return report();
}

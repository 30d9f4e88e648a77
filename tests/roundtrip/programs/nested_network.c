/* Network namespaces of a program's own: two that pairs of devices go across, and the container's. */
// capabilities: CAP_SYS_ADMIN CAP_NET_ADMIN
#include "network.h"
#include <netinet/in.h>

static struct world was[3], is[3];
static int ours[2];

static int shared(void) {
	for (int i = 0; i < 2; i++) { /* the kernel's numbers for other namespaces may be others */
		struct world *one = i ? is : was;
		for (int k = 0; k < 3; k++)
			for (int line = 0; line < one[k].count; line++) {
				char *number = strstr(one[k].lines[line], " 37=");
				if (number && !strncmp(one[k].lines[line], "16:", 3))
					memset(number, '_', 12);
			}
	}
	return 0;
}

static void pair_to(const char *name, int index, const char *peer, int peer_index, int namespace) {
	new_link(name, "veth", index);
	struct nlattr *other = nest(VETH_INFO_PEER);
	struct ifinfomsg head = {.ifi_index = peer_index};
	memcpy((char *)&request + request.head.nlmsg_len, &head, sizeof head);
	request.head.nlmsg_len += sizeof head;
	put_text(IFLA_IFNAME, peer), put32(IFLA_NET_NS_FD, namespace);
	end(other), made();
}

static void set(const char *name) {
	char path[100];
	sprintf(path, "/proc/sys/net/ipv4/%s", name);
	int file = must(open(path, O_WRONLY));
	must(write(file, "2", 1)), close(file);
}

/* A child in a namespace of its own; the two tell each other what they did. */
static void child(int who, int ready, int go, int report_to) {
	char byte, path[100];
	if (who)
		close(ours[0]);
	must(unshare(CLONE_NEWNET));
	must(write(ready, "x", 1)), must(read(go, &byte, 1));
	up("lo"), up("inside");
	address("inside", who ? "10.0.2.2" : "10.0.1.2", 24), ask();
	route("0.0.0.0", 0, RTN_UNICAST, RT_TABLE_MAIN), put_ip(RTA_GATEWAY, who ? "10.0.2.1" : "10.0.1.1"), ask();
	if (who) {
		up("across");
		address("across", "10.0.3.2", 24), ask();
		set("conf/inside/arp_ignore"), set("tcp_retries1"), set("conf/lo/rp_filter");
	} else
		up("across");
	must(write(ready, "x", 1)), must(read(go, &byte, 1)); /* until the other ends are up, too */
	settle();
	read_world(&was[1]), close_routing();
	must(write(ready, "x", 1)), must(read(go, &byte, 1));
	read_world(&is[1]);
	shared();
	expect_same_world(&was[1], &is[1]);
	for (int i = 0; i < 3 && who; i++) {
		sprintf(path, "/proc/sys/net/ipv4/%s", (const char *[]){"conf/inside/arp_ignore", "tcp_retries1", "conf/lo/rp_filter"}[i]);
		int file = must(open(path, O_RDONLY));
		expect(read(file, &byte, 1) == 1 && byte == '2', "%s is %c", path, byte);
		close(file);
	}
	/* what is sent from outside arrives */
	int bound = must(socket(AF_INET, SOCK_DGRAM, 0));
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7)};
	inet_pton(AF_INET, who ? "10.0.2.2" : "10.0.1.2", &name.sin_addr);
	must(bind(bound, (void *)&name, sizeof name));
	struct timeval soon = {.tv_sec = 10};
	must(setsockopt(bound, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
	must(write(ready, "x", 1));
	expect(recv(bound, &byte, 1, 0) == 1 && byte == 'p', "nothing arrives in %d: %s", who, strerror(errno));
	must(write(report_to, "x", 1));
	_exit(0);
}

int main(void) {
	int ready[2][2], go[2][2], done[2];
	pid_t children[2];
	char byte, path[64];
	must(pipe(done));
	for (int i = 0; i < 2; i++) {
		must(pipe(ready[i])), must(pipe(go[i]));
		if ((children[i] = must(fork())) == 0)
			child(i, ready[i][1], go[i][0], done[1]);
		must(read(ready[i][0], &byte, 1));
		sprintf(path, "/proc/%d/ns/net", children[i]);
		ours[i] = must(open(path, O_RDONLY | O_CLOEXEC));
	}
	pair_to("to0", 40, "inside", 41, ours[0]);
	pair_to("to1", 0, "inside", 0, ours[1]);
	/* between the two, made from here */
	int namespace = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	must(setns(ours[0], CLONE_NEWNET));
	close_routing();
	pair_to("across", 0, "across", 0, ours[1]);
	close_routing();
	must(setns(namespace, CLONE_NEWNET));
	close(namespace), close(ours[0]), close(ours[1]);
	up("to0"), up("to1");
	address("to0", "10.0.1.1", 24), ask();
	address("to1", "10.0.2.1", 24), ask();
	for (int times = 0; times < 2; times++)
		for (int i = 0; i < 2; i++)
			must(write(go[i][1], "x", 1)), must(read(ready[i][0], &byte, 1));
	settle();
	read_world(&was[0]);
	freeze_here();
	spoil(address("to0", "10.66.0.1", 32), ask(););
	read_world(&is[0]);
	shared();
	expect_same_world(&was[0], &is[0]);
	for (int i = 0; i < 2; i++) {
		must(write(go[i][1], "x", 1)), must(read(ready[i][0], &byte, 1));
		int sender = must(socket(AF_INET, SOCK_DGRAM, 0));
		struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7)};
		inet_pton(AF_INET, i ? "10.0.2.2" : "10.0.1.2", &name.sin_addr);
		must(sendto(sender, "p", 1, 0, (void *)&name, sizeof name));
	}
	for (int i = 0; i < 2; i++)
		must(read(done[0], &byte, 1)), join(children[i]);
	return report();
}

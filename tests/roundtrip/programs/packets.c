/* packet(7): sockets of both types with names, options, memberships, groups and filters; rings of all versions, read and written by turns. */
// arguments: sockets | ring 1 | ring 2 | ring 3 | sending | sending around
// capabilities: CAP_NET_RAW CAP_NET_ADMIN
#include "wait.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

enum { PROTOCOL = 0x88b6, FRAME = 2048, FRAMES = 16, BLOCK = 8192 };
static int sender;

static struct sockaddr_ll lo(int protocol) {
	return (struct sockaddr_ll){.sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = if_nametoindex("lo")};
}

static void send_packet(int protocol, int number) {
	char frame[60] = {[12] = protocol >> 8, [13] = protocol};
	struct sockaddr_ll to = lo(protocol);
	memcpy(frame + 14, &number, sizeof number);
	must(sendto(sender, frame, sizeof frame, 0, (void *)&to, sizeof to));
}

static int bound(int type, int protocol) {
	int fd = must(socket(AF_PACKET, type, 0));
	struct sockaddr_ll name = lo(protocol);
	must(bind(fd, (void *)&name, sizeof name));
	return fd;
}

static void set(int fd, int name, int value) { must(setsockopt(fd, SOL_PACKET, name, &value, sizeof value)); }

static int get(int fd, int name) {
	int value = -1;
	socklen_t length = sizeof value;
	must(getsockopt(fd, SOL_PACKET, name, &value, &length));
	return value;
}

/* How many memberships have the loopback device promiscuous. */
static int promiscuity(void) {
	struct { struct nlmsghdr head; struct ifinfomsg link; } request = {{.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST},
		{.ifi_index = if_nametoindex("lo")}};
	static char answer[1 << 14] __attribute__((aligned(8)));
	int fd = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	must(send(fd, &request, sizeof request, 0));
	int length = must(recv(fd, answer, sizeof answer, 0)) - NLMSG_SPACE(sizeof request.link);
	close(fd);
	for (struct rtattr *one = (void *)(answer + NLMSG_SPACE(sizeof request.link)); RTA_OK(one, length); one = RTA_NEXT(one, length))
		if (one->rta_type == IFLA_PROMISCUITY)
			return *(int *)RTA_DATA(one);
	return -1;
}

static int hears(int fd, int within) { return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, within); }

/* Take the number of a packet that is there, or -1. */
static int taken(int fd, int offset) {
	char found[64] = {0};
	int number = -1;
	if (recv(fd, found, sizeof found, MSG_DONTWAIT) > 0)
		memcpy(&number, found + offset, sizeof number);
	return number;
}

/* The number of the next packet, which may be under way. */
static int comes(int fd, int offset) { return hears(fd, 60000) ? taken(fd, offset) : -1; }

static void sockets(void) {
	int raw = bound(SOCK_RAW | SOCK_NONBLOCK, PROTOCOL), cooked = must(socket(AF_PACKET, SOCK_DGRAM, htons(PROTOCOL + 1))),
		silent = must(socket(AF_PACKET, SOCK_RAW, 0)), filtered = bound(SOCK_RAW, PROTOCOL), all = must(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
	int old = must(socket(AF_INET, SOCK_PACKET, htons(PROTOCOL + 3)));
	must(bind(old, (void *)&(struct sockaddr_pkt){.spkt_family = AF_PACKET, .spkt_device = "lo"}, sizeof(struct sockaddr)));
	set(raw, PACKET_AUXDATA, 1);
	set(raw, PACKET_ORIGDEV, 1);
	set(raw, PACKET_QDISC_BYPASS, 1);
	set(raw, PACKET_VNET_HDR, 1);
	set(raw, PACKET_TIMESTAMP, 0x10);
	set(all, 23, 1); /* PACKET_IGNORE_OUTGOING */
	struct packet_mreq promiscuous = {.mr_ifindex = if_nametoindex("lo"), .mr_type = PACKET_MR_PROMISC};
	for (int i = 0; i < 2; i++)
		must(setsockopt(cooked, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous));
	/* Only what has an even number. */
	struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 14), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 1, 0), BPF_STMT(BPF_RET | BPF_K, -1),
		BPF_STMT(BPF_RET | BPF_K, 0)};
	must(setsockopt(filtered, SOL_SOCKET, SO_ATTACH_FILTER, &(struct sock_fprog){4, code}, sizeof(struct sock_fprog)));
	int group[2];
	for (int i = 0; i < 2; i++) {
		group[i] = bound(SOCK_RAW, PROTOCOL + 2);
		set(group[i], PACKET_FANOUT, 77 | PACKET_FANOUT_LB << 16);
	}

	freeze_here();
	spoil(must(setsockopt(cooked, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &promiscuous, sizeof promiscuous)););

	same("flags", O_RDWR | O_NONBLOCK, fcntl(raw, F_GETFL));
	same("PACKET_AUXDATA", 1, get(raw, PACKET_AUXDATA));
	same("PACKET_ORIGDEV", 1, get(raw, PACKET_ORIGDEV));
	same("PACKET_QDISC_BYPASS", 1, get(raw, PACKET_QDISC_BYPASS));
	same("PACKET_VNET_HDR", 1, get(raw, PACKET_VNET_HDR));
	same("PACKET_TIMESTAMP", 0x10, get(raw, PACKET_TIMESTAMP));
	same("PACKET_IGNORE_OUTGOING", 1, get(all, 23));
	send_packet(PROTOCOL, 4);
	send_packet(PROTOCOL, 5);
	send_packet(PROTOCOL + 1, 6);
	same("its number, behind a virtio header", 4, comes(raw, 10 + 14));
	same("the next", 5, comes(raw, 10 + 14));
	same("no more", -1, taken(raw, 10 + 14));
	same("another, without its header", 6, comes(cooked, 0));
	same("what the filter lets through", 4, comes(filtered, 14));
	same("and nothing else", -1, taken(filtered, 14));
	send_packet(PROTOCOL + 3, 7);
	struct sockaddr_pkt from = {0};
	socklen_t length = sizeof from;
	char frame[64] = {0};
	same("one of the first kind hears", 1, hears(old, 60000));
	same("what it hears", 60, recvfrom(old, frame, sizeof frame, MSG_DONTWAIT, (void *)&from, &length));
	same("from where", 0, strcmp((char *)from.spkt_device, "lo"));
	same("what", 7, frame[14]);
	same("nothing is heard by one that nobody has bound", 0, hears(silent, 200));
	same("all is heard by one for all", 4, comes(all, 14));
	for (int i = 1; i >= 0; i--) {
		must(setsockopt(cooked, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &promiscuous, sizeof promiscuous));
		same("the device's promiscuity", i, promiscuity());
	}
	same("the group", 77 | PACKET_FANOUT_LB << 16, get(group[1], PACKET_FANOUT));
	for (int i = 0; i < 8; i++)
		send_packet(PROTOCOL + 2, i);
	for (int i = 0; i < 8; i++)
		expect(comes(group[i & 1], 14) >= 0, "the group's halves of eight: %d is missing", i);
	for (int i = 0; i < 2; i++)
		same("more than its half", -1, taken(group[i], 14));
}

static int version, turn, left;
static char *ring, *packet;

/* Wait for the kernel to give a frame or block of the ring back; tell whether it has. */
static bool is_given(int fd, volatile unsigned *status, int within) {
	for (int waited = 0; !(*status & TP_STATUS_USER); waited += 200) {
		if (waited >= within)
			return false;
		poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 200);
	}
	return true;
}

/* How many packets wait in a ring. */
static int waiting(void) {
	int count = left, size = version == TPACKET_V3 ? BLOCK : FRAME;
	for (int i = left > 0; i < FRAME * FRAMES / size; i++) {
		void *place = ring + (turn + i) % (FRAME * FRAMES / size) * size;
		struct tpacket_block_desc *block = place;
		if (version != TPACKET_V3 && !(*(volatile unsigned *)place & TP_STATUS_USER))
			break;
		if (version == TPACKET_V3 && !(*(volatile unsigned *)&block->hdr.bh1.block_status & TP_STATUS_USER))
			break;
		count += version == TPACKET_V3 ? (int)block->hdr.bh1.num_pkts : 1;
	}
	return count;
}

/* Take the next packet's number out of a ring, in the ring's order; -1 if none comes within some milliseconds. */
static int next(int fd, int within) {
	int number;
	if (version == TPACKET_V3) {
		struct tpacket_block_desc *block = (void *)(ring + turn * BLOCK);
		if (!left && !is_given(fd, &block->hdr.bh1.block_status, within))
			return -1;
		if (!left) {
			left = block->hdr.bh1.num_pkts;
			packet = (char *)block + block->hdr.bh1.offset_to_first_pkt;
		}
		struct tpacket3_hdr *head = (void *)packet;
		memcpy(&number, packet + head->tp_mac + 14, sizeof number);
		packet += head->tp_next_offset;
		if (!--left) {
			__atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
			turn = (turn + 1) % (FRAME * FRAMES / BLOCK);
		}
		return number;
	}
	char *frame = ring + turn * FRAME;
	volatile unsigned *status = (void *)frame; /* of 8 bytes in version 1; it is little-endian */
	if (!is_given(fd, status, within))
		return -1;
	memcpy(&number, frame + (version == TPACKET_V1 ? ((struct tpacket_hdr *)frame)->tp_mac : ((struct tpacket2_hdr *)frame)->tp_mac) + 14, sizeof number);
	*status = TP_STATUS_KERNEL;
	turn = (turn + 1) % FRAMES;
	return number;
}

static void receiving(void) {
	int fd = must(socket(AF_PACKET, SOCK_RAW, 0)), sent = 0, got = 0;
	struct sockaddr_ll name = lo(PROTOCOL);
	struct tpacket_req3 request = {.tp_block_size = BLOCK, .tp_block_nr = FRAME * FRAMES / BLOCK, .tp_frame_size = FRAME, .tp_frame_nr = FRAMES,
		.tp_retire_blk_tov = 20};
	set(fd, PACKET_VERSION, version);
	must(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, version == TPACKET_V3 ? sizeof request : sizeof(struct tpacket_req)));
	ring = must(mmap(NULL, FRAME * FRAMES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	must(bind(fd, (void *)&name, sizeof name));
	/* Once around, and on; some wait, and they know their turn. */
	while (sent < FRAMES + 3) {
		send_packet(PROTOCOL, sent++);
		same("before", got++, next(fd, 60000));
	}
	for (int i = 0; i < 4; i++)
		send_packet(PROTOCOL, sent++);
	expect(eventually(waiting() == 4), "%d wait in the ring, not 4", waiting()); /* and their block is closed */

	freeze_here();
	spoil(same("", got, next(fd, 60000)); send_packet(PROTOCOL, 99););

	while (got < sent)
		same("what waited", got++, next(fd, 60000));
	same("nothing else", -1, next(fd, 600));
	for (int i = 0; i < 2 * FRAMES; i++) {
		send_packet(PROTOCOL, sent++);
		same("what comes then", got++, next(fd, 60000));
	}
	same("the version", version, get(fd, PACKET_VERSION));
}

static void put(int number) {
	struct tpacket2_hdr *head = (void *)(ring + turn * FRAME);
	char *frame = (char *)head + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll);
	same("the frame is free", TP_STATUS_AVAILABLE, head->tp_status);
	memset(frame, 0, 60);
	frame[12] = PROTOCOL >> 8;
	frame[13] = (char)PROTOCOL;
	memcpy(frame + 14, &number, sizeof number);
	head->tp_len = 60;
	__atomic_store_n(&head->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
	turn = (turn + 1) % FRAMES;
}

static void sending(bool around) {
	int fd = must(socket(AF_PACKET, SOCK_RAW, 0)), hearer = bound(SOCK_RAW, PROTOCOL);
	struct sockaddr_ll name = lo(0);
	struct tpacket_req request = {.tp_block_size = BLOCK, .tp_block_nr = FRAME * FRAMES / BLOCK, .tp_frame_size = FRAME, .tp_frame_nr = FRAMES};
	set(fd, PACKET_VERSION, TPACKET_V2);
	must(setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof request));
	ring = must(mmap(NULL, FRAME * FRAMES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	must(bind(fd, (void *)&name, sizeof name));
	for (int i = 0; around && i < FRAMES + 1; i++) {
		put(i);
		must(send(fd, NULL, 0, 0));
		same("around", i, taken(hearer, 14));
	}
	for (int i = 0; i < 5; i++)
		put(i);
	must(send(fd, NULL, 0, 0));
	for (int i = 0; i < 5; i++)
		same("before", i, taken(hearer, 14));
	if (!around)
		put(5); /* nobody has asked to send it yet */

	freeze_here();
	spoil(turn++;);

	if (around)
		put(5);
	put(6);
	same("sending", 1, send(fd, NULL, 0, 0) > 0);
	same("what waited", 5, taken(hearer, 14));
	same("what came to it", 6, taken(hearer, 14));
	for (int i = 7; i < 7 + 2 * FRAMES; i++) {
		put(i);
		must(send(fd, NULL, 0, 0));
		same("what is sent then", i, taken(hearer, 14));
	}
}

int main(int count, char **arguments) {
	const char *what = count > 1 ? arguments[1] : "sockets";
	sender = must(socket(AF_PACKET, SOCK_RAW, 0));
	if (!strcmp(what, "ring")) {
		version = atoi(arguments[2]) - 1;
		receiving();
	} else if (!strcmp(what, "sending")) {
		sending(count > 2);
	} else {
		sockets();
	}
	return report();
}

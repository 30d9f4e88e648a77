/* TCP with signed segments (TCP_MD5SIG): a listener and a connection keep their keys, for peers by address and by prefix. */
// arguments: 4 | 6
#include "wait.h"
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <poll.h>

static union { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; } address;
static socklen_t size;

static int made(const char *key, int prefix) {
	int fd = must(socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	struct tcp_md5sig signature = {.tcpm_keylen = strlen(key), .tcpm_flags = prefix ? TCP_MD5SIG_FLAG_PREFIX : 0, .tcpm_prefixlen = prefix};
	memcpy(&signature.tcpm_addr, &address, size);
	memcpy(signature.tcpm_key, key, strlen(key));
	if (*key)
		must(setsockopt(fd, IPPROTO_TCP, prefix ? TCP_MD5SIG_EXT : TCP_MD5SIG, &signature, sizeof signature));
	return fd;
}

/* Connect with a key, and tell whether it works within the time. */
static int reaches(int client, int limit) {
	int error = 0;
	socklen_t length = sizeof error;
	if (connect(client, &address.any, size) != 0 && poll(&(struct pollfd){.fd = client, .events = POLLOUT}, 1, limit) != 1)
		return 0;
	must(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length));
	return error == 0;
}

int main(int count, char **arguments) {
	if (count > 1 && arguments[1][0] == '4') {
		address.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(7071), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		size = sizeof address.four;
	} else {
		address.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(7071), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
		size = sizeof address.six;
	}
	int listener = made("the key of all", 8), client = made("the key of all", 0);
	must(bind(listener, &address.any, size));
	must(listen(listener, 5));
	same("connecting with the key", 1, reaches(client, 60000));
	int server = must(accept(listener, NULL, NULL));
	must(send(client, "queued", 6, 0));

	freeze_here();
	spoil(close(listener); listener = made("", 0); must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, 4)); must(bind(listener, &address.any, size));
		must(listen(listener, 5)););

	char found[16] = {0};
	struct timeval limit = {.tv_sec = 60};
	must(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	same("what was queued", 6, recv(server, found, sizeof found, 0));
	must(send(client, "signed", 6, 0));
	same("what comes signed", 6, recv(server, found, sizeof found, 0));
	same("the text", 0, strcmp(found, "signed"));
	same("connecting without a key", 0, reaches(made("", 0), 300));
	same("connecting with another key", 0, reaches(made("another", 0), 300));
	same("connecting with the key once more", 1, reaches(made("the key of all", 0), 60000));
	return report();
}

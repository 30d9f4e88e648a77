/* Addresses of the loopback device, of the family that is `four` or not. */
#pragma once
#include "wait.h"
#include <arpa/inet.h>

union address { struct sockaddr any; struct sockaddr_in four; struct sockaddr_in6 six; };
static bool four;
static socklen_t size;

static inline union address at(int port) {
	union address made = {0};
	if (four)
		made.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	else
		made.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	return made;
}

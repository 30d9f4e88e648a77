/* A host name that the program set is kept. */
// capabilities: CAP_SYS_ADMIN
#include "wait.h"

int main(void) {
	char name[64] = "", domain[64] = "";
	must(sethostname("changed", 7));
	must(setdomainname("pond", 4));
	freeze_here();
	spoil(must(sethostname("frog", 4)););
	must(gethostname(name, sizeof name));
	must(getdomainname(domain, sizeof domain));
	expect(!strcmp(name, "changed"), "the host name is %s", name);
	expect(!strcmp(domain, "pond"), "the domain name is %s", domain);
	return report();
}

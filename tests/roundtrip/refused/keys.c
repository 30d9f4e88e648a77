/* A key that only this process has. */
#include "../programs/wait.h"
#include <linux/keyctl.h>

int main(void) {
	must(syscall(SYS_add_key, "user", "frog", "payload", 7, KEY_SPEC_PROCESS_KEYRING));
	freeze_here();
	return report();
}

/* Memory that may not become executable any more (PR_SET_MDWE), in a child and in a parent whose other child is free. */
#include "memory.h"
#include <sys/prctl.h>

enum { SET = 65, GET, REFUSE_EXEC_GAIN = 1, NO_INHERIT = 2 };

static bool refuses(char *memory) { return mprotect(memory, PAGE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES; }

int main(void) {
	char *memory = anonymous(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE), *code = anonymous(PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	fill(memory, PAGE, 1);
	bool known = prctl(GET, 0, 0, 0, 0) >= 0; /* since Linux 6.3 */
	pid_t freed = must(fork());
	if (freed == 0) {
		wait_for("check");
		_exit(refuses(memory));
	}
	int wanted = known && prctl(SET, REFUSE_EXEC_GAIN | NO_INHERIT, 0, 0, 0) == 0 ? REFUSE_EXEC_GAIN | NO_INHERIT : REFUSE_EXEC_GAIN;
	if (known && wanted == REFUSE_EXEC_GAIN)
		must(prctl(SET, wanted, 0, 0, 0));
	freeze_here();
	spoil(fill(memory, PAGE, 2););
	expect(is_filled(memory, PAGE, 1) && code[0] == 0, "it holds something else");
	if (known) {
		same("what is refused", wanted, prctl(GET, 0, 0, 0, 0));
		expect(refuses(memory), "memory can become executable");
	}
	join(freed);
	return report();
}

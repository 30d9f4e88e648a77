/* A child has the memory of its parent's context of Linux AIO, but no context. */
// never: restored_twice
#include "wait.h"
#include <linux/aio_abi.h>

int main(void) {
	aio_context_t context = 0;
	struct io_event event;
	struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = must(open("/dev/null", O_RDONLY)), .aio_data = 7}, *requests = &request;
	must(syscall(SYS_io_setup, 10, &context));
	same("submitted", 1, syscall(SYS_io_submit, context, 1, &requests));
	pid_t child = must(fork());
	if (child == 0) {
		wait_for("check");
		_exit(!(syscall(SYS_io_getevents, context, 0, 1, &event, NULL) == -1 && errno == EINVAL && ((unsigned *)context)[3] == 1));
	}
	freeze_here();
	spoil(same("none", 0, syscall(SYS_io_getevents, context, 0, 1, &event, NULL)););
	join(child);
	same("taken", 1, syscall(SYS_io_getevents, context, 0, 1, &event, NULL));
	same("whose event it is", 7, event.data);
	return report();
}

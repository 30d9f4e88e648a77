/* Contexts of Linux AIO: events that wait, around the end of the ring, an empty one, a large one. */
#include "wait.h"
#include <linux/aio_abi.h>

static long reads(aio_context_t context, int file, void *into, int length, int from, uint64_t data) {
	struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file, .aio_buf = (uintptr_t)into, .aio_nbytes = length, .aio_offset = from, .aio_data = data};
	struct iocb *requests = &request;
	return syscall(SYS_io_submit, context, 1, &requests);
}

static long takes(aio_context_t context, int most, struct io_event *events) {
	return syscall(SYS_io_getevents, context, 0, most, events, NULL);
}

int main(void) {
	aio_context_t turned = 0, fresh = 0, large = 0;
	struct io_event events[64];
	char buffer[64];
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0600));
	must(write(file, "0123456789abcdef", 16));
	must(syscall(SYS_io_setup, 10, &turned));
	must(syscall(SYS_io_setup, 5000, &large));
	must(syscall(SYS_io_setup, 1, &fresh));
	for (int i = 0; i < 120; i++) {
		same("submitted", 1, reads(turned, file, buffer, 1, 0, i));
		same("taken", 1, takes(turned, 1, events));
	}
	for (int i = 0; i < 9; i++)
		same("submitted", 1, reads(turned, file, buffer, i, 0, 1000 + i));
	same("submitted", 1, reads(large, file, buffer, 7, 0, 77));

	freeze_here();
	spoil(takes(turned, 1, events););

	same("the head", 120, ((unsigned *)turned)[2]);
	same("taken", 9, takes(turned, 64, events));
	for (int i = 0; i < 9; i++)
		expect(events[i].data == 1000u + i && events[i].res == i, "event %d: %ld, %ld", i, (long)events[i].data, (long)events[i].res);
	same("taken", 0, takes(fresh, 64, events));
	same("taken", 1, takes(large, 64, events));
	expect(events[0].data == 77 && events[0].res == 7, "event: %ld, %ld", (long)events[0].data, (long)events[0].res);
	aio_context_t all[] = {turned, fresh, large};
	for (int i = 0; i < 300; i++) {
		same("submitted", 1, reads(all[i % 3], file, buffer, 3, 10, i));
		expect(memcmp(buffer, "abc", 3) == 0, "read was %.3s", buffer);
		same("taken", 1, takes(all[i % 3], 64, events));
		same("whose event it is", i, events[0].data);
	}
	for (int i = 0; i < 3; i++)
		must(syscall(SYS_io_destroy, all[i]));
	return report();
}

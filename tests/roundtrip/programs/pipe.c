/* Pipes: half full, full, empty, of packets, of another size; each end in several processes; one description for both ways. */
// capabilities: CAP_CHOWN CAP_SETUID CAP_SETGID
#include "wait.h"
#include <poll.h>

static char bytes[65536], found[65536];

int main(void) {
	int half[2], full[2], empty[2], packets[2], large[2], halved[2];
	must(pipe(half));
	must(pipe2(full, O_NONBLOCK | O_CLOEXEC));
	must(pipe(empty));
	must(pipe2(packets, O_DIRECT));
	must(pipe(large));
	must(pipe(halved));
	fill(bytes, sizeof bytes, 1);
	must(write(half[1], bytes, 30000));
	must(read(half[0], found, 1000));
	while (write(full[1], bytes, 4096) > 0) {}
	must(write(packets[1], "one", 3));
	must(write(packets[1], "second", 6));
	same("a larger size", 1 << 18, fcntl(large[1], F_SETPIPE_SZ, 1 << 18));
	must(write(large[1], bytes, 65536));
	must(write(large[1], bytes, 65536));
	must(write(halved[1], "last words", 10));
	close(halved[1]); /* no writer any more */
	/* The reader's number is above the writer's: it is made after it. */
	int late[2], reader;
	must(pipe(late));
	reader = must(dup(late[0]));
	close(late[0]);
	must(write(late[1], "waiting", 7));
	/* One description for both ways, and nothing else of that pipe. */
	int both[2];
	char link[32];
	must(pipe(both));
	snprintf(link, sizeof link, "/proc/self/fd/%d", both[0]);
	int two_way = must(open(link, O_RDWR | O_NONBLOCK));
	must(write(two_way, "to itself", 9));
	close(both[0]);
	close(both[1]);
	/* Each end opened again, as a shell does by /dev/stdin; others wait there, too. */
	snprintf(link, sizeof link, "/proc/self/fd/%d", half[0]);
	int again = must(open(link, O_RDONLY)), wide = must(open(link, O_RDWR | O_APPEND));
	/* One that is somebody else's, who may open it again. */
	int theirs[2];
	must(pipe(theirs));
	must(fchmod(theirs[0], 0640));
	must(fchown(theirs[0], 1000, 1001));
	pid_t child = must(fork());
	if (child == 0) {
		close(empty[0]);
		wait_for("check");
		spoil(must(read(half[0], found, 1)););
		expect(write(empty[1], "from the child", 14) == 14, "the child can't write");
		_exit(0);
	}
	close(empty[1]); /* only the child has it: its end is the pipe's */

	freeze_here();
	join(child);
	struct stat owner;
	must(fstat(theirs[1], &owner));
	same("its owner", 1000, owner.st_uid);
	same("its group", 1001, owner.st_gid);
	same("its mode", S_IFIFO | 0640, owner.st_mode);
	if ((child = must(fork())) == 0) {
		must(setresgid(1001, 1001, 1001));
		must(setresuid(1000, 1000, 1000));
		snprintf(link, sizeof link, "/proc/self/fd/%d", theirs[1]);
		_exit(open(link, O_RDWR) < 0);
	}
	int status;
	must(waitpid(child, &status, 0));
	same("its owner opens it again", 0, status);

	same("read from the half-full", 29000, read(half[0], found, sizeof found));
	expect(!memcmp(found, bytes + 1000, 29000), "it holds other bytes");
	must(fcntl(half[0], F_SETFL, O_NONBLOCK));
	expect(read(half[0], found, 1) == -1 && errno == EAGAIN, "it held more bytes");
	expect(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the full one isn't full");
	for (int i = 0; i < 16; i++)
		expect(read(full[0], found, 4096) == 4096 && !memcmp(found, bytes, 4096), "page %d of the full one", i);
	expect(read(full[0], found, 1) == -1 && errno == EAGAIN, "the full one held more");
	same("close-on-exec", FD_CLOEXEC, fcntl(full[1], F_GETFD));
	same("a packet", 3, read(packets[0], found, 100));
	same("the next packet", 6, read(packets[0], found, 100));
	same("flags of packets", O_DIRECT | O_WRONLY, fcntl(packets[1], F_GETFL));
	same("flags of a reader that was opened again", O_RDONLY, fcntl(again, F_GETFL) & ~0100000);
	same("flags of one for both ways that was opened again", O_RDWR | O_APPEND, fcntl(wide, F_GETFL) & ~0100000);
	same("flags of a writer", O_WRONLY, fcntl(late[1], F_GETFL));
	same("flags of its reader", O_RDONLY, fcntl(reader, F_GETFL));
	expect(read(reader, found, 100) == 7 && !memcmp(found, "waiting", 7), "what waited");
	same("flags of the one for both ways", O_RDWR | O_NONBLOCK, fcntl(two_way, F_GETFL) & ~0100000);
	expect(read(two_way, found, 100) == 9 && !memcmp(found, "to itself", 9), "it holds something else");
	expect(write(two_way, "more", 4) == 4 && read(two_way, found, 100) == 4, "it can't be read and written");
	same("size", 1 << 18, fcntl(large[0], F_GETPIPE_SZ));
	for (int i = 0; i < 2; i++)
		expect(read(large[0], found, 65536) == 65536 && !memcmp(found, bytes, 65536), "the large one, part %d", i);
	expect(read(halved[0], found, 100) == 10 && read(halved[0], found, 100) == 0, "without a writer: no last words, or no end");
	expect(read(empty[0], found, 100) == 14 && read(empty[0], found, 100) == 0, "from the child: nothing, or no end");
	return report();
}

/* A file system of our own (FUSE) and an open file on it; with an argument, not mounted any more. */
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define AT "/tmp/served"
#define ROOT 1
#define FILE_OF_OURS 2

static int device;

static void answer(unsigned long unique, int error, const void *data, size_t size)
{
	static char out[4096];
	struct fuse_out_header head = {.len = sizeof head + size, .error = error, .unique = unique};
	memcpy(out, &head, sizeof head);
	if (size)
		memcpy(out + sizeof head, data, size);
	if (write(device, out, head.len) < 0)
		perror("write");
}

static struct fuse_attr attributes(unsigned long node)
{
	unsigned mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0644;
	return (struct fuse_attr){.ino = node, .mode = mode, .nlink = 1, .blksize = 4096};
}

static void serve(void)
{
	static char in[1 << 20];
	while (read(device, in, sizeof in) > 0) {
		struct fuse_in_header *asked = (void *)in;
		struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 1 << 16};
		struct fuse_attr_out attr = {.attr = attributes(asked->nodeid)};
		struct fuse_entry_out entry = {.nodeid = FILE_OF_OURS, .attr = attributes(FILE_OF_OURS)};
		struct fuse_open_out opened = {.fh = 1};
		switch (asked->opcode) {
		case FUSE_INIT:
			answer(asked->unique, 0, &init, sizeof init);
			break;
		case FUSE_GETATTR:
			answer(asked->unique, 0, &attr, sizeof attr);
			break;
		case FUSE_LOOKUP:
			answer(asked->unique, 0, &entry, sizeof entry);
			break;
		case FUSE_OPEN:
			answer(asked->unique, 0, &opened, sizeof opened);
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
			break;
		default:
			answer(asked->unique, -38, NULL, 0); /* ENOSYS */
		}
	}
}

int main(int argc, char **argv)
{
	char options[100];
	(void)argv;
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return perror("/dev/fuse"), 1;
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
	if (mkdir(AT, 0755) || mount("served", AT, "fuse", 0, options))
		return perror("mount"), 1;
	if (!fork()) {
		serve();
		_exit(0);
	}
	close(device);
	if (open(AT "/file", O_RDONLY) < 0)
		return perror("open"), 1;
	if (argc > 1 && umount2(AT, MNT_DETACH))
		return perror("umount"), 1;
	close(open("/work/ready", O_CREAT | O_WRONLY, 0644));
	for (;;)
		pause();
}

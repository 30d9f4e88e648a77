/* Processes that share descriptors, or working directory and umask, by clone(2): child, grandchild, one that shares nothing, and a thread that shares less. */
#include "wait.h"
#include <linux/kcmp.h>

static pid_t clone_(int flags) { return must(syscall(SYS_clone, SIGCHLD | flags, NULL, NULL, NULL, 0)); }
static void *works_elsewhere(__attribute__((unused)) void *nothing) {
	char found[64] = "";
	must(unshare(CLONE_FS));
	must(chdir(in_work("here")));
	umask(033);
	say("thread");
	wait_for("look");
	must(getcwd(found, sizeof found));
	expect(!strcmp(found, in_work("here")), "the thread is in %s", found);
	same("the thread's umask", 033, umask(0));
	return NULL;
}

static bool shared(int kind, pid_t one, pid_t other) { return syscall(SYS_kcmp, one, other, kind, 0, 0) == 0; }

int main(void) {
	char found[64] = "";
	pid_t first = getpid(), pids[4];
	must(mkdir(in_work("there"), 0755));
	must(mkdir(in_work("here"), 0755));
	int file = must(open(in_work("file"), O_RDWR | O_CREAT, 0644));
	must(write(file, "0123456789", 10));
	must(fcntl(file, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_len = 5}));
	int pids_file = must(open(in_work("pids"), O_RDWR | O_CREAT, 0644));

	pid_t child = clone_(CLONE_FILES | CLONE_FS);
	if (child == 0) {
		must(dup2(file, 90));
		pid_t grandchild = clone_(CLONE_FILES);
		if (grandchild == 0) {
			must(fcntl(file, F_DUPFD_CLOEXEC, 91));
			must(chdir(in_work("here")));
			umask(011);
			say("grandchild");
			wait_for("look");
			expect(read(file, found, 1) == 1 && found[0] == '4', "the grandchild reads %s", found);
			must(getcwd(found, sizeof found));
			expect(!strcmp(found, in_work("here")), "the grandchild is in %s", found);
			same("its umask", 011, umask(0));
			_exit(0);
		}
		must(pwrite(pids_file, &grandchild, sizeof grandchild, 0));
		wait_for("grandchild");
		must(chdir(in_work("there")));
		umask(027);
		say("child");
		wait_for("look");
		must(dup2(file, 92));
		join(grandchild);
		must(chdir("/"));
		_exit(0);
	}
	wait_for("child");
	pthread_t thread;
	must(pthread_create(&thread, NULL, works_elsewhere, NULL));
	wait_for("thread");
	must(pread(pids_file, pids, sizeof *pids, 0));
	must(lseek(file, 4, SEEK_SET));
	pid_t alone = must(fork());
	if (alone == 0) {
		wait_for("look");
		same("what the others open", -1, fcntl(92, F_GETFD));
		must(getcwd(found, sizeof found));
		expect(!strcmp(found, in_work("there")), "the one alone is in %s", found);
		_exit(0);
	}

	freeze_here();
	spoil(must(syscall(SYS_unshare, CLONE_FILES)););

	expect(shared(KCMP_FILES, first, child), "the child's descriptors are its own");
	expect(shared(KCMP_FILES, first, pids[0]), "the grandchild's descriptors are its own");
	expect(!shared(KCMP_FILES, first, alone), "the one alone shares them");
	expect(shared(KCMP_FS, first, child), "the child's directory is its own");
	expect(!shared(KCMP_FS, first, pids[0]) && !shared(KCMP_FS, first, alone), "others share it");
	same("what the child had duplicated", 0, fcntl(90, F_GETFD));
	same("what the grandchild had", FD_CLOEXEC, fcntl(91, F_GETFD));
	must(getcwd(found, sizeof found));
	expect(!strcmp(found, in_work("there")), "the working directory is %s", found);
	same("umask", 027, umask(027));
	pid_t looker = must(fork());
	if (looker == 0) {
		struct flock lock = {.l_type = F_WRLCK, .l_len = 5};
		must(fcntl(file, F_GETLK, &lock));
		expect(lock.l_type == F_WRLCK, "the lock is gone");
		_exit(0);
	}
	join(looker);
	say("look");
	pthread_join(thread, NULL);
	join(alone);
	join(child);
	same("what the child has opened since", 0, fcntl(92, F_GETFD));
	must(getcwd(found, sizeof found));
	expect(!strcmp(found, "/"), "after the child went away, it is %s", found);
	return report();
}

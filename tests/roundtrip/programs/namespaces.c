/* Processes and threads in namespaces that they made or joined: who has which in common, and what is in each. */
// arguments: uts | ipc | net | cgroup
// capabilities: CAP_SYS_ADMIN CAP_SYS_CHROOT
#include "namespaces.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/shm.h>

static const char *kind;
static int flag;

/* Put something of ours into the namespace that we are in. */
static void furnish(int who) {
	if (flag == CLONE_NEWUTS) {
		char name[20];
		sprintf(name, "pond-%d", who);
		must(sethostname(name, strlen(name)));
		must(setdomainname(name, strlen(name)));
	} else if (flag == CLONE_NEWIPC) {
		int *memory = must(shmat(must(shmget(0xf409, 4096, IPC_CREAT | 0640)), NULL, 0));
		*memory = who;
		int queue = must(msgget(0xf409, IPC_CREAT | 0600));
		must(msgsnd(queue, &(struct { long type; int who; }){1, who}, sizeof who, 0));
		must(shmdt(memory));
	}
}

static void is_furnished(int who, int by) {
	if (flag == CLONE_NEWUTS) {
		char name[20], is[65], domain[65];
		sprintf(name, "pond-%d", by);
		must(gethostname(is, sizeof is)), must(getdomainname(domain, sizeof domain));
		expect(!strcmp(is, name) && !strcmp(domain, name), "%d: it is %s, %s here, not %s", who, is, domain, name);
	} else if (flag == CLONE_NEWIPC) {
		int *memory = must(shmat(must(shmget(0xf409, 4096, 0)), NULL, 0));
		expect(*memory == by, "%d: it is the memory of %d, not %d", who, *memory, by);
		must(shmdt(memory));
		struct { long type; int who; } message = {0};
		expect(msgrcv(must(msgget(0xf409, 0)), &message, sizeof message.who, 0, IPC_NOWAIT | MSG_NOERROR | MSG_COPY) == sizeof message.who
			&& message.who == by, "%d: it is the queue of %d, not %d", who, message.who, by);
	}
}

static void stay(int who, int by) {
	note_place(who, kind);
	wait_for("check");
	check_place(who, kind);
	is_furnished(who, by);
}

static void *thread(void *unused) {
	(void)unused;
	must(unshare(flag)), furnish(4);
	stay(4, 4);
	return NULL;
}

int main(int count, char **arguments) {
	kind = arguments[count - 1];
	flag = !strcmp(kind, "uts") ? CLONE_NEWUTS : !strcmp(kind, "ipc") ? CLONE_NEWIPC : !strcmp(kind, "net") ? CLONE_NEWNET : CLONE_NEWCGROUP;
	prepare_places();
	furnish(0);
	pid_t first = must(fork());
	if (first == 0) {
		must(unshare(flag)), furnish(1);
		pid_t child = must(fork()); /* has what its parent has */
		if (child == 0)
			return stay(2, 1), 0;
		pthread_t other;
		must(pthread_create(&other, NULL, thread, NULL));
		stay(1, 1);
		join(child), pthread_join(other, NULL);
		return 0;
	}
	await(&places[1].noted);
	pid_t second = must(fork());
	if (second == 0) {
		enter(first, kind); /* has what it has joined; its child is where we all came from */
		pid_t child = must(fork());
		if (child == 0) {
			enter(1, kind);
			return stay(5, 0), 0;
		}
		stay(3, 1);
		join(child);
		return 0;
	}
	for (int i = 1; i < 6; i++)
		await(&places[i].noted);
	note_place(0, kind);
	freeze_here();
	spoil(must(unshare(flag)););
	check_place(0, kind);
	is_furnished(0, 0);
	compare_places(kind, 6);
	join(first), join(second);
	return report();
}

/* The robust list: when a process dies holding a mutex in shared memory, the next one is told. */
#include "wait.h"

static pthread_mutex_t *mutexes;

static void *thread(void *mutex) {
	pthread_mutex_lock(mutex);
	while (pause()) {}
	return NULL;
}

int main(void) {
	mutexes = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
	for (int i = 0; i < 3; i++)
		pthread_mutex_init(&mutexes[i], &robust);
	pid_t child = must(fork());
	if (child == 0) {
		pthread_t other;
		pthread_create(&other, NULL, thread, &mutexes[1]);
		pthread_mutex_lock(&mutexes[2]);
		thread(&mutexes[0]);
	}
	while (pthread_mutex_trylock(&mutexes[0]) == 0 ? !pthread_mutex_unlock(&mutexes[0]) : 0)
		sched_yield();
	while (pthread_mutex_trylock(&mutexes[1]) == 0 ? !pthread_mutex_unlock(&mutexes[1]) : 0)
		sched_yield();

	freeze_here();
	spoil(syscall(SYS_process_vm_writev, child, NULL, 0, NULL, 0, 0); pthread_mutex_init(&mutexes[1], &robust););

	for (int i = 0; i < 3; i++)
		same("before its owner's death, trylock", EBUSY, pthread_mutex_trylock(&mutexes[i]));
	must(kill(child, SIGKILL));
	must(waitpid(child, NULL, 0));
	for (int i = 0; i < 3; i++)
		same("after its owner's death, trylock", EOWNERDEAD, pthread_mutex_trylock(&mutexes[i]));
	return report();
}

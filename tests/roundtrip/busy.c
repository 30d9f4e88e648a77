// Two threads count in a file that both they and the test have mapped, as fast as they can.
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

static void *count(void *number) {
    for (volatile uint64_t *counter = number;;)
        ++*counter;
    return NULL;
}

int main(void) {
    int fd = open("/work/counts", O_RDWR);
    uint64_t *counts = mmap(NULL, 2 * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_t thread;
    if (counts == MAP_FAILED || pthread_create(&thread, NULL, count, &counts[1]))
        return 1;
    count(&counts[0]);
}

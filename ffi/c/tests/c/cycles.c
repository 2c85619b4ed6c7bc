/* Opens, uses and closes again and again: descriptors, threads, handles and memory stay as they were. */
#include <dirent.h>
#include <unistd.h>

#include "check.h"

static int entries(const char *path)
{
    DIR *dir = opendir(path);
    CHECK(dir);
    int count = 0;
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

static long resident_kib(void)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &pages, &resident) == 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Threads that were joined leave /proc a moment later. */
static int threads(int expected)
{
    for (int i = 0; i < 1000 && entries("/proc/self/task") != expected; i++) usleep(1000);
    return entries("/proc/self/task");
}

static void cycle(test_batch *t, const char *nvme_path)
{
    kvtier_store store = open_store(nvme_path, KVTIER_DURABILITY_WRITE_BEHIND);
    kvtier_queue queue = {0};
    OK(kvtier_queue_open(&queue));
    t->batch.queue = queue;
    kvtier_ticket put = {0}, get = {0};
    OK(kvtier_store_put(store, &t->batch, &put));
    OK(kvtier_store_get(store, &t->batch, &get));
    OK(kvtier_ticket_cancel(get));
    finish(put);
    finish(get);
    OK(kvtier_store_close(store, 0));
    OK(kvtier_queue_close(queue));
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    int cycles = atoi(argv[1]);
    test_batch t;
    make_batch(&t, 1, 2);
    for (int i = 0; i < 20; i++) cycle(&t, i % 10 ? NULL : argv[2]);
    int fds = entries("/proc/self/fd"), tasks = threads(3);
    CHECK(tasks == 3); /* this one, "." and ".." */
    long before = resident_kib();
    for (int i = 0; i < cycles; i++) cycle(&t, i % 100 ? NULL : argv[2]);

    /* The same within one store. */
    kvtier_store store = open_store(NULL, KVTIER_DURABILITY_WRITE_BEHIND);
    t.batch.queue.id = 0;
    for (int i = 0; i < cycles; i++) {
        kvtier_ticket ticket = {0};
        OK(i % 2 ? kvtier_store_get(store, &t.batch, &ticket) : kvtier_store_put(store, &t.batch, &ticket));
        finish(ticket);
    }
    OK(kvtier_store_close(store, 0));
    CHECK(entries("/proc/self/fd") == fds);
    CHECK(threads(tasks) == tasks);
    long grown = resident_kib() - before;
    printf("%d cycles: %d descriptors, %ld KiB more memory\n", cycles, fds - 3, grown);
    /* A leak of 100 bytes a cycle would be 1000 KiB at 10,000. */
    CHECK(grown < 2048);
    free(t.memory);
    return 0;
}

/* What must not be done: each gives a status, and the store works as before. */
#include <limits.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static void garbage_handles(kvtier_store store)
{
    kvtier_stats stats;
    OK(kvtier_init(&stats, sizeof stats));
    const uint64_t garbage[] = {0, 1, 7, UINT64_MAX, 0xDEADBEEF, store.id + 1, store.id ^ (1ull << 33), store.id | (1ull << 63)};
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        if (garbage[i] == store.id) continue;
        GIVES(KVTIER_INVALID_HANDLE, kvtier_store_stats((kvtier_store){garbage[i]}, &stats));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_store_close((kvtier_store){garbage[i]}, 0));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_release((kvtier_ticket){garbage[i]}));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_queue_close((kvtier_queue){garbage[i]}));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_pool_close((kvtier_pool){garbage[i]}));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_cancel((kvtier_ticket){garbage[i]}));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_wait_layer((kvtier_ticket){garbage[i]}, 0, 0));
        GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_hold_layer((kvtier_ticket){garbage[i]}, 0, 0, 0));
    }
    /* A handle of another kind. */
    GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_release((kvtier_ticket){store.id}));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_queue_close((kvtier_queue){store.id}));
    OK(kvtier_store_stats(store, &stats));
}

static void nulls(kvtier_store store)
{
    kvtier_ticket ticket = {0};
    test_batch t;
    make_batch(&t, 1, 2);
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_init(NULL, 8));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_open(NULL, &store));
    kvtier_store_config config;
    OK(kvtier_init(&config, sizeof config));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_open(&config, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, NULL, &ticket));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_exists(store, NULL, NULL, NULL));
    OK(kvtier_store_exists(store, &t.batch, NULL, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_remove(store, NULL, NULL));
    OK(kvtier_store_remove(store, &t.batch, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_stats(store, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_stats_json(store, NULL, 10, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_flush(store, 0, (kvtier_queue){0}, 0, NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_queue_open(NULL));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_pool_register(store, NULL, NULL));
    t.batch.keys = NULL;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch.keys = t.keys[0];
    t.batch.runs = NULL;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch.runs = t.runs;
    t.runs[1].start = NULL;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    /* Not aligned. */
    uint8_t *odd = t.memory + 1;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, (const kvtier_batch *)(const void *)odd, &ticket));
    CHECK(ticket.id == 0);
    free(t.memory);
}

static void sizes_and_counts(kvtier_store store)
{
    kvtier_ticket ticket = {0};
    test_batch t;
    make_batch(&t, 1, 2);
    const kvtier_batch good = t.batch;
    struct {
        kvtier_batch known;
        uint64_t unknown;
    } larger = {good, 0};
    larger.known.size = sizeof larger;
    OK(kvtier_store_put(store, &larger.known, &ticket));
    finish(ticket);
    larger.unknown = 1;
    GIVES(KVTIER_UNSUPPORTED, kvtier_store_put(store, &larger.known, &ticket));
    const uint32_t sizes[] = {0, 8, sizeof good - 8, 5000, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        t.batch.size = sizes[i];
        GIVES(KVTIER_UNSUPPORTED, kvtier_store_put(store, &t.batch, &ticket));
    }
    t.batch = good;
    t.batch.version = 2;
    GIVES(KVTIER_UNSUPPORTED, kvtier_store_put(store, &t.batch, &ticket));
    t.batch = good;
    t.batch.flags = 1u << 31;
    GIVES(KVTIER_UNSUPPORTED, kvtier_store_put(store, &t.batch, &ticket));
    const uint64_t counts[] = {3, 1u << 21, UINT64_MAX, 1ull << 60};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        t.batch = good;
        if (counts[i] != 1u << 21) { /* would be read */
            t.batch.num_runs = counts[i];
            GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
        }
        t.batch = good;
        if (counts[i] == 3) continue;
        t.batch.num_keys = counts[i];
        GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
        GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_exists(store, &t.batch, NULL, NULL));
    }
    t.batch = good;
    t.batch.key_bytes = 0;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch.key_bytes = UINT32_MAX;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    const uint64_t backwards[2] = {16, 8}, empty[2] = {16, 16};
    t.batch = good;
    t.batch.key_ends = backwards;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch.key_ends = empty;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch = good;
    t.runs[0].len = UINT64_MAX;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.runs[0].len = BLOCK - 1;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_store_put(store, &t.batch, &ticket));
    t.batch.queue.id = 99;
    GIVES(KVTIER_INVALID_HANDLE, kvtier_store_pin(store, &t.batch, &ticket));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_init(&t.batch, UINT64_MAX));
    GIVES(KVTIER_UNSUPPORTED, kvtier_store_flush(store, 0, (kvtier_queue){0}, 0, &ticket)); /* has no log */
    /* Nothing at all is little, but no mistake. */
    t.batch = good;
    t.batch.num_keys = t.batch.num_runs = 0;
    OK(kvtier_store_get(store, &t.batch, &ticket));
    CHECK(finish(ticket).keys == 0);
    free(t.memory);
}

static void configurations(void)
{
    kvtier_store store = {0};
    kvtier_store_config config, good;
    OK(kvtier_init(&good, sizeof good));
    good.block_bytes = BLOCK;
#define REFUSED(status, change)                             \
    do {                                                    \
        config = good;                                      \
        change;                                             \
        GIVES(status, kvtier_store_open(&config, &store));  \
    } while (0)
    REFUSED(KVTIER_INVALID_ARGUMENT, config.block_bytes = 0);
    REFUSED(KVTIER_INVALID_ARGUMENT, config.block_bytes = UINT64_MAX);
    REFUSED(KVTIER_INVALID_ARGUMENT, config.block_bytes = 1ull << 30);
    REFUSED(KVTIER_INVALID_ARGUMENT, config.host_bytes = BLOCK);
    REFUSED(KVTIER_INVALID_ARGUMENT, config.host_bytes = 1ull << 60);
    REFUSED(KVTIER_INVALID_ARGUMENT, config.nvme_path = "/tmp");
    REFUSED(KVTIER_INVALID_ARGUMENT, config.nvme_bytes = 1);
    REFUSED(KVTIER_IO, (config.nvme_path = "/nonexistent/kv", config.nvme_bytes = 1u << 30));
    REFUSED(KVTIER_INVALID_ARGUMENT, config.tenant = "\xff\xfe");
    REFUSED(KVTIER_INVALID_ARGUMENT, config.durability = 9);
    REFUSED(KVTIER_UNSUPPORTED, config.reserved = 1);
    CHECK(store.id == 0);
}

static void pools(kvtier_store store)
{
    static uint8_t tensor[16 * BLOCK];
    void *buffers[1] = {tensor};
    kvtier_pool_config config, good;
    OK(kvtier_init(&good, sizeof good));
    good.layers = 1;
    good.tokens_per_block = 16;
    good.head_dim = BLOCK / 16 / 2;
    good.dtype = KVTIER_DTYPE_F16;
    good.num_blocks = 16;
    good.buffers = buffers;
    good.num_buffers = 1;
    good.block_stride = BLOCK;
    good.token_stride = BLOCK / 16;
    good.device = KVTIER_DEVICE_HOST;
    kvtier_pool pool = {0}, second = {0};
#define POOL_REFUSED(status, change)                                   \
    do {                                                               \
        config = good;                                                 \
        change;                                                        \
        GIVES(status, kvtier_pool_register(store, &config, &pool));    \
    } while (0)
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.layers = 0);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.layers = UINT32_MAX);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.dtype = 77);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, (config.kv_heads = 1, config.order = 7));
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.fused = 2);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.block_stride = 1);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.num_blocks = 0);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.num_buffers = 0);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.num_buffers = UINT64_MAX);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.buffers = NULL);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.num_streams = UINT32_MAX);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.device = -2);
    POOL_REFUSED(KVTIER_INVALID_ARGUMENT, config.head_dim = 8);
    OK(kvtier_pool_register(store, &good, &pool));
    GIVES(KVTIER_BUSY, kvtier_pool_register(store, &good, &second));
    test_batch t;
    make_batch(&t, 50, 2);
    kvtier_ticket ticket = {0};
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_pool_offload(pool, &t.batch, &ticket)); /* no blocks */
    uint32_t blocks[2] = {0, 16};
    t.batch.blocks = blocks;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_pool_offload(pool, &t.batch, &ticket)); /* no such block */
    blocks[1] = 1;
    OK(kvtier_pool_onboard(pool, &t.batch, &ticket)); /* nothing there */
    GIVES(KVTIER_LOAD_FAILED, kvtier_ticket_wait_layer(ticket, 0, 60 * SECOND));
    finish(ticket);
    OK(kvtier_pool_offload(pool, &t.batch, &ticket));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_ticket_wait_layer(ticket, 0, 60 * SECOND)); /* not a load */
    finish(ticket);
    OK(kvtier_pool_onboard(pool, &t.batch, &ticket));
    GIVES(KVTIER_LOAD_FAILED, kvtier_ticket_wait_layer(ticket, 1, 60 * SECOND)); /* no such layer */
    finish(ticket);
    OK(kvtier_pool_close(pool));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_pool_close(pool));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_pool_offload(pool, &t.batch, &ticket));
    free(t.memory);
}

static void after_fork(kvtier_store store, kvtier_ticket ticket)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        kvtier_stats stats;
        kvtier_queue queue = {0};
        if (kvtier_init(&stats, sizeof stats) != KVTIER_FORKED) _exit(1);
        if (kvtier_store_stats(store, &stats) != KVTIER_FORKED) _exit(2);
        if (kvtier_store_close(store, 0) != KVTIER_FORKED) _exit(3);
        if (kvtier_ticket_wait(ticket, UINT64_MAX, NULL) != KVTIER_FORKED) _exit(4);
        if (kvtier_queue_open(&queue) != KVTIER_FORKED) _exit(5);
        if (kvtier_abi_version() != KVTIER_ABI_VERSION || !kvtier_last_error()[0]) _exit(6);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* What other threads get while the store is closed under them: it works, it is busy, or it is closed. */
static void *hammer(void *argument)
{
    kvtier_store store = *(kvtier_store *)argument;
    test_batch t;
    make_batch(&t, 1000, 16);
    uint64_t served = 0;
    for (int i = 0;; i++) {
        kvtier_ticket ticket = {0};
        uint64_t prefix = 0;
        uint32_t status = kvtier_store_exists(store, &t.batch, NULL, &prefix);
        if (status == KVTIER_OK)
            status = i % 3 ? kvtier_store_get(store, &t.batch, &ticket) : kvtier_store_put(store, &t.batch, &ticket);
        if (status == KVTIER_INVALID_HANDLE || status == KVTIER_CLOSED) break;
        CHECK(status == KVTIER_OK || status == KVTIER_BUSY);
        if (status == KVTIER_OK) {
            if (i % 5 == 0) OK(kvtier_ticket_cancel(ticket));
            uint32_t released = kvtier_ticket_release(ticket);
            CHECK(released == KVTIER_OK || released == KVTIER_BUSY);
            if (released == KVTIER_BUSY) served += finish(ticket).done;
        }
        /* Reads and writes carry the same bytes, so these are right at all times. */
        CHECK(t.memory[5 * BLOCK + 77] == byte_of(1005, 77));
    }
    free(t.memory);
    return (void *)(uintptr_t)served;
}

static void other_threads(void)
{
    for (int round = 0; round < 5; round++) {
        kvtier_store store = open_store(NULL, KVTIER_DURABILITY_WRITE_BEHIND);
        pthread_t threads[6];
        for (int i = 0; i < 6; i++) CHECK(pthread_create(&threads[i], NULL, hammer, &store) == 0);
        usleep(30000);
        OK(kvtier_store_close(store, 60 * SECOND));
        for (int i = 0; i < 6; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

int main(void)
{
    other_threads();
    configurations();
    kvtier_store store = open_store(NULL, KVTIER_DURABILITY_WRITE_BEHIND);
    garbage_handles(store);
    nulls(store);
    sizes_and_counts(store);
    pools(store);

    test_batch t;
    make_batch(&t, 1000, 4);
    kvtier_ticket ticket = {0};
    OK(kvtier_store_put(store, &t.batch, &ticket));
    OK(kvtier_ticket_wait(ticket, 60 * SECOND, NULL));
    after_fork(store, ticket);
    uint8_t statuses[5];
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_ticket_statuses(ticket, statuses, 5));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_ticket_statuses(ticket, NULL, 4));
    OK(kvtier_ticket_release(ticket));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_release(ticket));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_ticket_poll(ticket, NULL));

    kvtier_queue queue = {0};
    OK(kvtier_queue_open(&queue));
    kvtier_completion completion;
    uint64_t count = 9;
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_queue_drain(queue, NULL, 5, &count));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_queue_fd(queue, NULL));
    OK(kvtier_queue_drain(queue, &completion, UINT64_MAX, &count));
    CHECK(count == 0);
    OK(kvtier_queue_close(queue));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_queue_close(queue));
    GIVES(KVTIER_INVALID_ARGUMENT, kvtier_set_logger(NULL, NULL, 6));

    /* Too much is under way: tickets that nobody releases. */
    kvtier_ticket *tickets = (kvtier_ticket *)calloc(2000, sizeof *tickets);
    uint32_t taken = 0, status;
    while ((status = kvtier_store_pin(store, &t.batch, &tickets[taken])) == KVTIER_OK) taken++;
    CHECK(status == KVTIER_BUSY && taken == 1024);
    OK(kvtier_store_close(store, 0));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_store_close(store, 0));
    GIVES(KVTIER_INVALID_HANDLE, kvtier_store_put(store, &t.batch, &ticket));
    for (uint32_t i = 0; i < taken; i++) finish(tickets[i]); /* closing ended them all */
    free(tickets);
    free(t.memory);
    puts("misuse gives statuses");
    return 0;
}

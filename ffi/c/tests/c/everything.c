/* Calls every function of the header, as C and as C++: a program that does it right. */
#include <poll.h>
#include <pthread.h>

#include "check.h"

static int messages;

static void logger(void *user, uint32_t level, const char *message)
{
    CHECK(level >= KVTIER_LOG_ERROR && level <= KVTIER_LOG_TRACE && message[0]);
    /* A callback may not call back. */
    CHECK(kvtier_queue_close((kvtier_queue){1}) == KVTIER_REENTERED);
    __atomic_add_fetch((int *)user, 1, __ATOMIC_RELAXED);
}

static void stores_and_loads(kvtier_store store)
{
    test_batch t;
    make_batch(&t, 100, 20);
    kvtier_ticket ticket = {0};
    OK(kvtier_store_put(store, &t.batch, &ticket));
    kvtier_result result = finish(ticket);
    CHECK(result.keys == 20 && result.done == 20 && result.prefix == 20);

    uint8_t places[21];
    uint64_t prefix = 0;
    OK(kvtier_store_exists(store, &t.batch, places, &prefix));
    CHECK(prefix == 20 && places[0] == KVTIER_AT_HOST);

    /* Into two uneven runs a key, one key more than there is. */
    memset(t.memory, 0xEE, 20 * BLOCK);
    kvtier_run runs[42];
    uint8_t keys[21][16];
    memset(keys, 0, sizeof keys);
    memcpy(keys, t.keys, 20 * 16);
    memset(keys[20], 0xFF, 16);
    uint8_t *spare = (uint8_t *)calloc(1, BLOCK);
    for (int i = 0; i < 21; i++) {
        uint8_t *start = i < 20 ? t.memory + (size_t)i * BLOCK : spare;
        runs[2 * i] = (kvtier_run){start, 1000};
        runs[2 * i + 1] = (kvtier_run){start + 1000, BLOCK - 1000};
    }
    t.batch.keys = keys[0];
    t.batch.num_keys = 21;
    t.batch.runs = runs;
    t.batch.num_runs = 42;
    kvtier_queue queue = {0};
    OK(kvtier_queue_open(&queue));
    t.batch.queue = queue;
    t.batch.tag = 77;
    OK(kvtier_store_get(store, &t.batch, &ticket));
    int fd = -1;
    OK(kvtier_queue_fd(queue, &fd));
    struct pollfd ready = {fd, POLLIN, 0};
    CHECK(poll(&ready, 1, 60000) == 1);
    kvtier_completion completions[4];
    uint64_t count = 0;
    OK(kvtier_queue_drain(queue, completions, 4, &count));
    CHECK(count == 1 && completions[0].tag == 77 && completions[0].done == 20 && completions[0].keys == 21);
    CHECK(poll(&ready, 1, 0) == 0);
    OK(kvtier_ticket_poll(ticket, NULL));
    uint8_t statuses[21];
    OK(kvtier_ticket_statuses(ticket, statuses, 21));
    CHECK(statuses[19] == KVTIER_KEY_DONE && statuses[20] == KVTIER_KEY_MISSING);
    OK(kvtier_ticket_cancel(ticket)); /* too late, and no harm */
    OK(kvtier_ticket_release(ticket));
    for (uint32_t i = 0; i < 20; i++)
        for (uint32_t at = 0; at < BLOCK; at++) CHECK(t.memory[i * BLOCK + at] == byte_of(100 + i, at));
    CHECK(spare[0] == 0);

    OK(kvtier_store_pin(store, &t.batch, &ticket));
    CHECK(finish(ticket).keys == 21);
    OK(kvtier_queue_close(queue));

    /* Strings as keys, and keys without runs in a chain. */
    static const char text[] = "model@1/aamodel@1/b";
    const uint64_t ends[2] = {10, 19};
    const uint32_t counts[2] = {1, 0};
    kvtier_batch strings;
    OK(kvtier_init(&strings, sizeof strings));
    strings.keys = (const uint8_t *)text;
    strings.key_ends = ends;
    strings.num_keys = 2;
    strings.flags = KVTIER_BATCH_CHAIN;
    strings.runs = t.runs;
    strings.num_runs = 1;
    strings.run_counts = counts;
    strings.timeout_ns = 60 * SECOND;
    OK(kvtier_store_put(store, &strings, &ticket));
    CHECK(finish(ticket).prefix == 1);

    /* What is on its way to NVMe is in use. */
    OK(kvtier_store_flush(store, 60 * SECOND, (kvtier_queue){0}, 0, &ticket));
    finish(ticket);
    uint8_t removals[2] = {9, 9};
    OK(kvtier_store_remove(store, &strings, removals));
    CHECK(removals[0] == KVTIER_REMOVE_DONE && removals[1] == KVTIER_REMOVE_ABSENT);
    OK(kvtier_store_exists(store, &strings, places, NULL));
    CHECK(places[0] == KVTIER_AT_NONE);
    free(spare);
    free(t.memory);
}

static void clears(kvtier_store store)
{
    test_batch t;
    make_batch(&t, 50, 1);
    kvtier_ticket ticket = {0};
    OK(kvtier_store_put(store, &t.batch, &ticket));
    CHECK(finish(ticket).done == 1);
    OK(kvtier_store_clear(store));
    uint64_t prefix = 9;
    OK(kvtier_store_exists(store, &t.batch, NULL, &prefix));
    CHECK(prefix == 0);
    free(t.memory);
}

static void pools(kvtier_store store)
{
    /* 2 layers x (K, V) x 8 tokens x 4 heads x 32 dims of bf16 = 8 KiB a block; one tensor [16, ...] per layer. */
    enum { BLOCKS = 16, LAYER = BLOCK / 2 };
    uint8_t *layers[2] = {(uint8_t *)malloc(BLOCKS * LAYER), (uint8_t *)malloc(BLOCKS * LAYER)};
    void *buffers[2] = {layers[0], layers[1]};
    for (int l = 0; l < 2; l++)
        for (uint32_t at = 0; at < BLOCKS * LAYER; at++) layers[l][at] = byte_of((uint32_t)l, at);
    kvtier_pool_config config;
    OK(kvtier_init(&config, sizeof config));
    config.layers = 2;
    config.tokens_per_block = 8;
    config.kv_heads = 4;
    config.head_dim = 32;
    config.dtype = KVTIER_DTYPE_BF16;
    config.order = KVTIER_ORDER_NHD;
    config.num_blocks = BLOCKS;
    config.buffers = buffers;
    config.num_buffers = 2;
    config.layer_stride = KVTIER_OWN_BUFFER;
    config.plane_stride = 8 * 4 * 32 * 2;
    config.block_stride = LAYER;
    config.token_stride = 4 * 32 * 2;
    config.head_stride = 32 * 2;
    config.device = KVTIER_DEVICE_HOST;
    kvtier_pool pool = {0};
    OK(kvtier_pool_register(store, &config, &pool));

    test_batch t;
    make_batch(&t, 900, 3);
    const uint32_t from[3] = {3, 4, 5}, to[3] = {15, 0, 9};
    t.batch.blocks = from;
    kvtier_ticket ticket = {0};
    OK(kvtier_pool_offload(pool, &t.batch, &ticket));
    CHECK(finish(ticket).done == 3);
    t.batch.blocks = to;
    OK(kvtier_pool_onboard(pool, &t.batch, &ticket));
    OK(kvtier_ticket_wait_layer(ticket, 0, 60 * SECOND));
    OK(kvtier_ticket_hold_layer(ticket, 1, 0, 60 * SECOND));
    CHECK(finish(ticket).done == 3);
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < 3; i++) CHECK(!memcmp(layers[l] + to[i] * LAYER, layers[l] + from[i] * LAYER, LAYER));
    OK(kvtier_pool_close(pool));
    free(t.memory);
    free(layers[0]);
    free(layers[1]);
}

static void *on_another_thread(void *argument)
{
    kvtier_store store = *(kvtier_store *)argument;
    uint64_t prefix = 9;
    test_batch t;
    make_batch(&t, 100, 1);
    OK(kvtier_store_exists(store, &t.batch, NULL, &prefix));
    CHECK(prefix == 1);
    /* Its own message, and none of ours. */
    CHECK(kvtier_last_error()[0] == 0);
    free(t.memory);
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    CHECK(kvtier_abi_version() == KVTIER_ABI_VERSION);
    CHECK(kvtier_version()[0]);
    CHECK(!strcmp(kvtier_status_name(KVTIER_BUSY), "KVTIER_BUSY"));
    CHECK(!strcmp(kvtier_status_name(12345), "KVTIER_UNKNOWN"));
    OK(kvtier_set_logger(logger, &messages, KVTIER_LOG_TRACE));

    kvtier_store store = open_store(argv[1], KVTIER_DURABILITY_AT_CLOSE);
    CHECK(messages > 0); /* about the log that was opened */
    clears(store);
    stores_and_loads(store);
    pools(store);
    kvtier_ticket ticket = {0};
    OK(kvtier_store_flush(store, 60 * SECOND, (kvtier_queue){0}, 0, &ticket));
    CHECK(finish(ticket).done == 1);
    kvtier_stats stats;
    OK(kvtier_init(&stats, sizeof stats));
    OK(kvtier_store_stats(store, &stats));
    CHECK(stats.stored == 25 && stats.nvme_used == 24 && stats.block_bytes == BLOCK);
    char json[4096];
    uint64_t needed = 0;
    OK(kvtier_store_stats_json(store, json, sizeof json, &needed));
    CHECK(strlen(json) + 1 == needed && strstr(json, "\"stored\":25"));
    GIVES(KVTIER_TOO_SMALL, kvtier_store_stats_json(store, json, 10, &needed));
    CHECK(kvtier_last_error()[0]);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, on_another_thread, &store) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    OK(kvtier_store_close(store, 60 * SECOND));

    /* A new life: what was stored is there. */
    store = open_store(argv[1], KVTIER_DURABILITY_AT_CLOSE);
    test_batch t;
    make_batch(&t, 100, 20);
    memset(t.memory, 0, 20 * BLOCK);
    OK(kvtier_store_get(store, &t.batch, &ticket));
    CHECK(finish(ticket).done == 20);
    for (uint32_t at = 0; at < BLOCK; at++) CHECK(t.memory[at] == byte_of(100, at));
    free(t.memory);
    OK(kvtier_store_close(store, 0));
    OK(kvtier_set_logger(NULL, NULL, KVTIER_LOG_OFF));
    puts("everything works");
    return 0;
}

/* What the C tests share. A failed check ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtier.h"

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);           \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

/* The call returns that status. */
#define GIVES(status, call)                                                           \
    do {                                                                              \
        uint32_t got_ = (uint32_t)(call);                                             \
        if (got_ != (uint32_t)(status)) {                                             \
            fprintf(stderr, "%s:%d: %s: %s (%s), not %s\n", __FILE__, __LINE__, #call, \
                    kvtier_status_name(got_), kvtier_last_error(), #status);          \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

#define OK(call) GIVES(KVTIER_OK, call)

#define BLOCK 8192u
#define SECOND 1000000000ull

static inline kvtier_store open_store(const char *nvme_path, uint32_t durability)
{
    kvtier_store_config config;
    OK(kvtier_init(&config, sizeof config));
    config.block_bytes = BLOCK;
    config.host_bytes = 64 * (BLOCK + 4096);
    config.nvme_path = nvme_path;
    config.nvme_bytes = nvme_path ? 32u << 20 : 0;
    config.model = "model";
    config.durability = durability;
    kvtier_store store = {0};
    OK(kvtier_store_open(&config, &store));
    CHECK(store.id != 0);
    return store;
}

/* A batch of keys of 16 bytes, each with one run. */
typedef struct {
    kvtier_batch batch;
    uint8_t keys[32][16];
    kvtier_run runs[32];
    uint8_t *memory;
} test_batch;

static inline uint8_t byte_of(uint32_t id, uint32_t at)
{
    return (uint8_t)((id * 2654435761u ^ at * 2246822507u) >> 13);
}

static inline void make_batch(test_batch *t, uint32_t first, uint32_t count)
{
    memset(t, 0, sizeof *t);
    OK(kvtier_init(&t->batch, sizeof t->batch));
    t->memory = (uint8_t *)malloc((size_t)count * BLOCK);
    CHECK(t->memory);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = first + i;
        memcpy(t->keys[i], &id, sizeof id);
        t->runs[i].start = t->memory + (size_t)i * BLOCK;
        t->runs[i].len = BLOCK;
        for (uint32_t at = 0; at < BLOCK; at++) t->memory[(size_t)i * BLOCK + at] = byte_of(id, at);
    }
    t->batch.keys = t->keys[0];
    t->batch.key_bytes = 16;
    t->batch.num_keys = count;
    t->batch.runs = t->runs;
    t->batch.num_runs = count;
}

/* Waits, takes the result, releases the ticket. */
static inline kvtier_result finish(kvtier_ticket ticket)
{
    kvtier_result result;
    OK(kvtier_init(&result, sizeof result));
    OK(kvtier_ticket_wait(ticket, 60 * SECOND, &result));
    OK(kvtier_ticket_release(ticket));
    return result;
}

#endif

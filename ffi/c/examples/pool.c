/* A runtime with paged tensors: offloads 16 blocks, and onboards them to other places, layer by layer. With device 0
 * and pointers of the GPU it is the same program. */
#include <kvtier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 4, BLOCKS = 64, TOKENS = 16, HEADS = 2, DIM = 64, LAYER = 2 * TOKENS * HEADS * DIM * 2, USED = 16 };

static void check(kvtier_status status, const char *what)
{
    if (status == KVTIER_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, kvtier_status_name(status), kvtier_last_error());
    exit(1);
}

int main(void)
{
    kvtier_store_config config;
    check(kvtier_init(&config, sizeof config), "init");
    config.block_bytes = LAYERS * LAYER;
    kvtier_store store;
    check(kvtier_store_open(&config, &store), "open");

    /* One tensor [BLOCKS, 2, TOKENS, HEADS, DIM] of bf16 per layer. */
    void *tensors[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        tensors[layer] = calloc(BLOCKS, LAYER);
        for (int block = 0; block < USED; block++) memset((char *)tensors[layer] + block * LAYER, 16 * layer + block, LAYER);
    }
    kvtier_pool_config layout;
    check(kvtier_init(&layout, sizeof layout), "init");
    layout.layers = LAYERS;
    layout.tokens_per_block = TOKENS;
    layout.kv_heads = HEADS;
    layout.head_dim = DIM;
    layout.dtype = KVTIER_DTYPE_BF16;
    layout.order = KVTIER_ORDER_NHD;
    layout.num_blocks = BLOCKS;
    layout.buffers = tensors;
    layout.num_buffers = LAYERS;
    layout.layer_stride = KVTIER_OWN_BUFFER;
    layout.block_stride = LAYER;
    layout.plane_stride = LAYER / 2;
    layout.token_stride = HEADS * DIM * 2;
    layout.head_stride = DIM * 2;
    layout.device = KVTIER_DEVICE_HOST;
    kvtier_pool pool;
    check(kvtier_pool_register(store, &layout, &pool), "register");

    uint64_t keys[USED];
    uint32_t from[USED], to[USED];
    for (uint32_t i = 0; i < USED; i++) {
        keys[i] = 1000 + i;
        from[i] = i;
        to[i] = BLOCKS - 1 - i;
    }
    kvtier_batch batch;
    check(kvtier_init(&batch, sizeof batch), "init");
    batch.keys = (const uint8_t *)keys;
    batch.key_bytes = sizeof keys[0];
    batch.num_keys = USED;
    batch.blocks = from;
    kvtier_ticket ticket;
    check(kvtier_pool_offload(pool, &batch, &ticket), "offload");
    check(kvtier_ticket_wait(ticket, 10000000000u, NULL), "wait");
    check(kvtier_ticket_release(ticket), "release");

    batch.blocks = to;
    check(kvtier_pool_onboard(pool, &batch, &ticket), "onboard");
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        check(kvtier_ticket_wait_layer(ticket, layer, 10000000000u), "wait_layer");
        /* The forward pass of this layer would run here, while the next ones load. */
    }
    kvtier_result result;
    check(kvtier_init(&result, sizeof result), "init");
    check(kvtier_ticket_wait(ticket, 10000000000u, &result), "wait");
    check(kvtier_ticket_release(ticket), "release");
    int right = 0;
    for (int i = 0; i < USED; i++) {
        int same = 1;
        for (int layer = 0; layer < LAYERS; layer++)
            same &= !memcmp((char *)tensors[layer] + to[i] * LAYER, (char *)tensors[layer] + from[i] * LAYER, LAYER);
        right += same;
    }
    printf("%d blocks were found, %d of %d are right\n", (int)result.done, right, USED);
    check(kvtier_store_close(store, 0), "close");
    for (int layer = 0; layer < LAYERS; layer++) free(tensors[layer]);
    return right == USED ? 0 : 1;
}

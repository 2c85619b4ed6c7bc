/* A runtime that owns its pages: stores 16 of them, and gets them back.
 *
 *   cc store.c $(pkg-config --cflags --libs kvtier) -o store && ./store /mnt/nvme/kvtier
 */
#include <kvtier.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES = 16, PAGE = 64 << 10 };

static void check(kvtier_status status, const char *what)
{
    if (status == KVTIER_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, kvtier_status_name(status), kvtier_last_error());
    exit(1);
}

int main(int argc, char **argv)
{
    kvtier_store_config config;
    check(kvtier_init(&config, sizeof config), "init");
    config.block_bytes = PAGE;
    config.host_bytes = 16 << 20;
    config.nvme_path = argc > 1 ? argv[1] : NULL; /* without one: host memory alone */
    config.nvme_bytes = argc > 1 ? 256u << 20 : 0;
    config.model = "llama-3.1-8b";
    config.revision = "0e9e39f";
    config.layout = "bf16 NHD tp0/1";
    kvtier_store store;
    check(kvtier_store_open(&config, &store), "open");
    kvtier_queue queue;
    check(kvtier_queue_open(&queue), "queue");

    /* The runtime's pages, and its hash of each. K and V of a page lie apart, so a page has two runs. */
    char *k = calloc(PAGES, PAGE / 2), *v = calloc(PAGES, PAGE / 2);
    unsigned char hashes[PAGES][32] = {{0}};
    kvtier_run runs[PAGES][2];
    for (int page = 0; page < PAGES; page++) {
        char *at[2] = {k + page * (PAGE / 2), v + page * (PAGE / 2)};
        for (int half = 0; half < 2; half++) {
            memset(at[half], 2 * page + half, PAGE / 2);
            runs[page][half].start = at[half];
            runs[page][half].len = PAGE / 2;
        }
        hashes[page][0] = (unsigned char)page;
    }
    kvtier_batch batch;
    check(kvtier_init(&batch, sizeof batch), "init");
    batch.keys = hashes[0];
    batch.key_bytes = sizeof hashes[0];
    batch.num_keys = PAGES;
    batch.runs = runs[0];
    batch.num_runs = 2 * PAGES;

    kvtier_ticket put;
    check(kvtier_store_put(store, &batch, &put), "put");
    check(kvtier_ticket_wait(put, 10000000000u, NULL), "wait"); /* until then the pages are in use */
    check(kvtier_ticket_release(put), "release");

    /* Back again, told by a descriptor that can sit in any event loop. */
    memset(k, 0, PAGES * PAGE / 2);
    memset(v, 0, PAGES * PAGE / 2);
    batch.queue = queue;
    batch.tag = 42;
    kvtier_ticket get;
    check(kvtier_store_get(store, &batch, &get), "get");
    struct pollfd ready = {-1, POLLIN, 0};
    check(kvtier_queue_fd(queue, &ready.fd), "fd");
    if (poll(&ready, 1, 10000) != 1) return 1;
    kvtier_completion done;
    uint64_t count;
    check(kvtier_queue_drain(queue, &done, 1, &count), "drain");
    check(kvtier_ticket_release(get), "release");
    int right = 0;
    for (int page = 0; page < PAGES; page++) right += k[page * (PAGE / 2)] == 2 * page && v[page * (PAGE / 2)] == 2 * page + 1;
    printf("ticket %d: %u of %u pages came back, %d of %d are right\n", (int)done.tag, done.done, done.keys, right, PAGES);

    check(kvtier_store_close(store, 0), "close");
    check(kvtier_queue_close(queue), "close");
    free(k);
    free(v);
    return right == PAGES ? 0 : 1;
}

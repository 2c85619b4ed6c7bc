/*
 * The part of Mooncake Store's C API that kvtier calls. `bindings.rs` is made from it by `make kernels`.
 *
 * The declarations are facts of mooncake-store/include/store_c.h in https://github.com/kvcache-ai/Mooncake
 * (Apache-2.0), commit 3b5a594133958449a1feaf1c9e0fc1b553e34a28. The library itself, libmooncake_store.so, is
 * looked for at run time. It promises not to use a caller's pointers after a call has returned.
 *
 * Where nothing else is said a call answers 0, or one of the negative codes of mooncake-store/include/types.h.
 */
#ifndef KV_MOONCAKE_STORE_C_H
#define KV_MOONCAKE_STORE_C_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* As <stddef.h> has it, which comes with a compiler: libclang alone has none. */
typedef __SIZE_TYPE__ size_t;

typedef void *mooncake_store_t;

struct mooncake_replicate_config {
    size_t replica_num;
    int with_soft_pin;
    int with_hard_pin;
    const char **preferred_segments;
    size_t preferred_segments_count;
};
typedef struct mooncake_replicate_config mooncake_replicate_config_t;

/* A client that is not set up; null if there is no memory. */
mooncake_store_t mooncake_store_create(void);

/* Ends a client. Nobody else may be using it. */
void mooncake_store_destroy(mooncake_store_t store);

/* Connects to the master and lends `global_segment_size` bytes of this process to the store. */
int mooncake_store_setup(mooncake_store_t store, const char *local_hostname, const char *metadata_server,
                         uint64_t global_segment_size, uint64_t local_buffer_size, const char *protocol,
                         const char *device_name, const char *master_server_addr);

/* From then on the transport may read and write this memory. */
int mooncake_store_register_buffer(mooncake_store_t store, void *buffer, size_t size);
int mooncake_store_unregister_buffer(mooncake_store_t store, void *buffer);

/* Stores from registered memory, an answer for each key. A null `config` is one replica. A key that is there already
 * is a success, and its value stays. */
int mooncake_store_batch_put_from(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, const mooncake_replicate_config_t *config, int *results_out);

/* Loads into registered memory; for each key the bytes of its value, or a code. */
int mooncake_store_batch_get_into(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, int64_t *results_out);

/* For each key 1, 0 or a code. */
int mooncake_store_batch_is_exist(mooncake_store_t store, const char **keys, size_t count, int *results_out);

/* Bytes of a value, or a code. */
int64_t mooncake_store_get_size(mooncake_store_t store, const char *key);

/* Forgets an object. `force` also if somebody has a lease on it; not while it is being written. */
int mooncake_store_remove(mooncake_store_t store, const char *key, int force);

/* Forgets the objects in whose keys an ECMAScript pattern is found; answers how many, or a code. */
int64_t mooncake_store_remove_by_regex(mooncake_store_t store, const char *pattern, int force);

#ifdef __cplusplus
}
#endif

#endif

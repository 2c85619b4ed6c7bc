#include "kv_host.h"
#include "kv_kernels.h"
#include <cstring>
static void zero(uint32_t, uint32_t, uint32_t, void **params) {
    auto &a = *static_cast<kv_zero_args *>(params[0]);
    auto *blocks = reinterpret_cast<const kv_block *>(a.blocks);
    for (uint32_t b = 0; b < a.num_blocks; ++b) std::memset(reinterpret_cast<void *>(blocks[b].dst), 0, a.nest.run.divisor * a.nest.vector_bytes);
}
const kv_host_kernel *kv_host_find(const char *name) {
    static const kv_host_kernel k{"kv_zero", sizeof(kv_zero_args), zero};
    return std::strcmp(name, k.name) == 0 ? &k : nullptr;
}
void kv_host_seed(uint64_t) {}

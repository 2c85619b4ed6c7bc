#include "kernel.h"

#include <cstdio>
#include <cstring>
#include <optional>
#include <string_view>

#include "kv_kernels.h"
#include "streams.h"

namespace fake {
namespace {

// A launch over blocks, whichever kernel it is.
struct Walk {
    const kv_view *src;  // null if it only writes
    const kv_view *dst;  // null if it only reads
    const kv_nest *nest;
    Address blocks;
    uint32_t num_blocks;
    Address digests;
};

template <typename Args>
const Args *argument(const Op &op) {
    return op.argument.size() == sizeof(Args) ? reinterpret_cast<const Args *>(op.argument.data()) : nullptr;
}

std::optional<Walk> walk_of(const Op &op) {
    std::string_view name = op.name;
    if (name.starts_with("kv_copy")) {
        if (auto *a = argument<kv_copy_args>(op)) return Walk{&a->src, &a->dst, &a->nest, a->blocks, a->num_blocks, 0};
    } else if (name.starts_with("kv_zero")) {
        if (auto *a = argument<kv_zero_args>(op)) return Walk{nullptr, &a->dst, &a->nest, a->blocks, a->num_blocks, 0};
    } else if (name.starts_with("kv_digest")) {
        if (auto *a = argument<kv_digest_args>(op)) {
            return Walk{&a->src, nullptr, &a->nest, a->blocks, a->num_blocks, a->digests};
        }
    }
    return std::nullopt;
}

// Bytes that the device may touch; null if it may not.
const unsigned char *reach(Memory &memory, Address address, size_t bytes) {
    Range *range = memory.find(address, bytes);
    return range == nullptr ? nullptr : range->store + (address - range->start);
}

template <typename T>
bool read(Memory &memory, Address address, T &out) {
    const unsigned char *bytes = reach(memory, address, sizeof out);
    if (bytes != nullptr) std::memcpy(&out, bytes, sizeof out);
    return bytes != nullptr;
}

std::string outside(const char *what, Address address, size_t bytes) {
    char text[160];
    std::snprintf(text, sizeof text, "%s, %zu bytes at %#lx: neither allocated device memory nor pinned host memory",
                  what, bytes, static_cast<unsigned long>(address));
    return text;
}

// The run of that number in the order of the nest, of one block on one side.
std::string check_run(Memory &memory, const kv_view &view, const kv_nest &nest, uint64_t offset, uint32_t run, const char *what) {
    Address address = offset;
    uint64_t buffer = 0;
    for (int level = KV_LEVELS - 1; level >= 0; --level) {
        uint32_t index = run % nest.count[level].divisor;
        run /= nest.count[level].divisor;
        address += index * view.step[level];
        buffer += index * uint64_t{view.buffer_step[level]};
    }
    if (view.buffers != 0) {
        Address base, entry = view.buffers + buffer * sizeof base;
        if (!read(memory, entry, base)) return outside("the table of buffers", entry, sizeof base);
        address += base;
    }
    size_t bytes = size_t{nest.run.divisor} * nest.vector_bytes;
    if (address % nest.vector_bytes != 0) return std::string(what) + " is not aligned to its vectors";
    return reach(memory, address, bytes) != nullptr ? std::string() : outside(what, address, bytes);
}

std::string check(Memory &memory, const Walk &walk) {
    const kv_nest &nest = *walk.nest;
    for (const kv_divisor &count : nest.count) {
        if (count.divisor == 0) return "a level without an index";
    }
    if (nest.run.divisor == 0 || nest.vector_bytes == 0 || nest.block.divisor % nest.run.divisor != 0) return "no nest";
    uint32_t runs = nest.block.divisor / nest.run.divisor;
    for (uint32_t i = 0; i < walk.num_blocks; ++i) {
        kv_block block;
        Address entry = walk.blocks + i * sizeof block;
        if (!read(memory, entry, block)) return outside("the list of blocks", entry, sizeof block);
        for (uint32_t run = nest.first_run; run < nest.first_run + runs; ++run) {
            std::string found;
            if (walk.src != nullptr) found = check_run(memory, *walk.src, nest, block.src, run, "a source");
            if (found.empty() && walk.dst != nullptr) {
                found = check_run(memory, *walk.dst, nest, block.dst, run, "a destination");
            }
            if (!found.empty()) return found;
        }
    }
    size_t digests = walk.num_blocks * sizeof(kv_digest);
    if (walk.digests != 0 && reach(memory, walk.digests, digests) == nullptr) {
        return outside("the digests", walk.digests, digests);
    }
    return {};
}

std::string check(Memory &memory, const kv_gemm_args &gemm) {
    struct {
        const char *what;
        Address address;
        size_t rows, columns;
    } matrices[] = {{"a", gemm.a, gemm.m, gemm.k}, {"b", gemm.b, gemm.k, gemm.n}, {"c", gemm.c, gemm.m, gemm.n}};
    for (const auto &matrix : matrices) {
        size_t bytes = matrix.rows * matrix.columns * sizeof(float);
        if (reach(memory, matrix.address, bytes) == nullptr) return outside(matrix.what, matrix.address, bytes);
    }
    return {};
}

// What cannot be read counts as device memory.
bool on_host(Memory &memory, const kv_view *view, uint64_t offset) {
    if (view == nullptr) return false;
    Address address = offset;
    if (view->buffers != 0 && !read(memory, view->buffers, address)) return false;
    return !memory.is_device_address(address);
}

}  // namespace

KernelWork work_of(const Op &op, Memory &memory) {
    auto walk = walk_of(op);
    if (!walk) return {};
    KernelWork work{uint64_t{walk->nest->block.divisor} * walk->nest->vector_bytes * walk->num_blocks};
    kv_block block;
    if (walk->num_blocks > 0 && read(memory, walk->blocks, block)) {
        work.over_link = on_host(memory, walk->src, block.src) || on_host(memory, walk->dst, block.dst);
    }
    return work;
}

std::string trespass_of(const Op &op, Memory &memory) {
    if (auto walk = walk_of(op)) return check(memory, *walk);
    if (auto *gemm = argument<kv_gemm_args>(op)) return check(memory, *gemm);
    return {};
}

}  // namespace fake

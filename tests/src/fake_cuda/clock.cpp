#include "clock.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "kv_host.h"
#include "kv_kernels.h"
#include "streams.h"

namespace fake {
namespace {

// A rate is bytes per microsecond.
uint64_t at_rate(uint64_t bytes, uint64_t rate) { return rate == 0 ? 0 : bytes * 1000 / rate; }

// A device address whose contents cannot be read counts as device memory.
template <typename T>
bool read(Memory &memory, Address address, T &out) {
    Range *range = memory.find(address, sizeof out);
    if (range == nullptr) return false;
    std::memcpy(&out, range->store + (address - range->start), sizeof out);
    return true;
}

bool on_host(Memory &memory, const kv_view &view, uint64_t offset) {
    uint64_t address = offset;
    if (view.buffers != 0 && !read(memory, view.buffers, address)) return false;
    return !memory.is_device_address(address);
}

struct Work {
    uint64_t bytes = 0;
    bool over_link = false;
};

Work walk(Memory &memory, const kv_nest &nest, uint64_t blocks, uint32_t num_blocks, const kv_view *src, const kv_view *dst) {
    Work work;
    work.bytes = uint64_t{nest.block.divisor} * nest.vector_bytes * num_blocks;
    kv_block first;
    if (num_blocks > 0 && read(memory, blocks, first)) {
        work.over_link = (src != nullptr && on_host(memory, *src, first.src)) ||
                         (dst != nullptr && on_host(memory, *dst, first.dst));
    }
    return work;
}

template <typename Args>
const Args *argument(const Op &op) {
    return op.argument.size() == sizeof(Args) ? reinterpret_cast<const Args *>(op.argument.data()) : nullptr;
}

Work work_of(const Op &op, Memory &memory) {
    std::string_view name = op.name;
    if (name.starts_with("kv_copy")) {
        if (auto *a = argument<kv_copy_args>(op)) return walk(memory, a->nest, a->blocks, a->num_blocks, &a->src, &a->dst);
    } else if (name == "kv_zero") {
        if (auto *a = argument<kv_zero_args>(op)) return walk(memory, a->nest, a->blocks, a->num_blocks, nullptr, &a->dst);
    } else if (name == "kv_digest_blocks") {
        if (auto *a = argument<kv_digest_args>(op)) return walk(memory, a->nest, a->blocks, a->num_blocks, &a->src, nullptr);
    }
    return {};
}

}  // namespace

Cost cost_of(const Op &op, const FakeSettings &settings, Memory &memory) {
    if (op.kind == Op::Kind::Kernel) {
        Work work = work_of(op, memory);
        uint64_t rate = settings.d2d_rate;
        if (work.over_link) rate = std::min(settings.kernel_link_rate, settings.cta_rate * op.grid);
        return {work.bytes, settings.launch_ns + at_rate(work.bytes, rate), 0};
    }
    uint64_t rate = settings.d2d_rate;
    if (op.engines == H2D_ENGINE) rate = settings.h2d_rate;
    if (op.engines == D2H_ENGINE) rate = settings.d2h_rate;
    if (op.engines == (H2D_ENGINE | D2H_ENGINE)) rate = std::min(settings.h2d_rate, settings.d2h_rate);
    uint64_t bytes = op.bytes();
    return {bytes, settings.descriptor_ns * op.pieces.size() + at_rate(bytes, rate), settings.copy_latency_ns};
}

}  // namespace fake

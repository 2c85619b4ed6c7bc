#include "cost.h"

#include <algorithm>

#include "kernel.h"
#include "streams.h"

namespace fake {
namespace {

// A rate is bytes per microsecond.
uint64_t at_rate(uint64_t bytes, uint64_t rate) { return rate == 0 ? 0 : bytes * 1000 / rate; }

}  // namespace

Cost cost_of(const Op &op, const FakeSettings &settings, Memory &memory) {
    if (op.kind == Op::Kind::Kernel) {
        KernelWork work = work_of(op, memory);
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

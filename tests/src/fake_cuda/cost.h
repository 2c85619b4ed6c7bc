// How long things take on the virtual clock.
#pragma once

#include "control.h"

namespace fake {

struct Op;
class Memory;

struct Cost {
    uint64_t bytes;       // moved
    uint64_t busy_ns;     // of the engine
    uint64_t latency_ns;  // until the last byte has arrived, besides
};

Cost cost_of(const Op &op, const FakeSettings &settings, Memory &memory);

}  // namespace fake

// What the arguments of kvtier's kernels say that a launch will touch. A host program can reach all of its
// memory, a GPU cannot: this is where the difference is found.
#pragma once

#include <string>

#include "abi.h"

namespace fake {

struct Op;
class Memory;

struct KernelWork {
    uint64_t bytes = 0;      // moved
    bool over_link = false;  // one side is host memory
};

KernelWork work_of(const Op &op, Memory &memory);

// Empty if the launch touches nothing but allocated device memory and pinned host memory; else what it does.
std::string trespass_of(const Op &op, Memory &memory);

}  // namespace fake

// Runs what may follow a wild pointer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fake {

// Calls `run(arg)`. Where it touches memory that is not there it finds a page of poison, which is gone
// afterwards. So it always comes to its end, and leaves no lock held. Returns the first such address, or 0.
// One call at a time.
uint64_t first_fault(void (*run)(void *), void *arg);

template <typename F>
uint64_t first_fault(F run) {
    return first_fault([](void *arg) { (*static_cast<F *>(arg))(); }, &run);
}

// Addresses that the driver has reserved for itself: those that it does not use at the moment are faults too.
void guard_reserved(const void *start, size_t bytes);

}  // namespace fake

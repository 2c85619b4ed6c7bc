// Runs what may follow a wild pointer, and comes back when it did.
#pragma once

namespace fake {

// Calls `run(arg)`. False if it touched memory that is not there; what it had on the stack is then gone
// without its destructors.
bool guarded(void (*run)(void *), void *arg);

template <typename F>
bool guarded(F f) {
    return guarded([](void *arg) { (*static_cast<F *>(arg))(); }, &f);
}

}  // namespace fake

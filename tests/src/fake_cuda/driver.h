// The whole driver: one lock, and what every call of the API does before and after its own work.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "abi.h"
#include "control.h"
#include "memory.h"
#include "streams.h"
#include "trace.h"

namespace fake {

// A device's primary context, the only kind there is. Stays known after its end.
struct Context {
    int device;
    unsigned retains;
};

// A kernel as the PTX declares it.
struct Entry {
    size_t argument_bytes = 0;
    unsigned most_threads = 1024;  // of a block
};

struct Module {
    Handle context;
    std::map<std::string, Entry> entries;
};

struct Function {
    Handle context;
    Handle module;
    const kv_host_kernel *kernel;
    unsigned most_threads;
    int dynamic_shared = 48 * 1024;  // the most that may be asked for
};

FakeSettings usual_settings();

struct Driver {
    std::mutex mutex;
    std::condition_variable changed;
    FakeSettings settings = usual_settings();
    // cuInit is done once in a process, and no reset undoes it.
    bool initialised = false;
    bool stalled = false;
    // Counts resets: what was waiting in an earlier life gives up.
    uint64_t life = 0;
    Handle last_handle = 0;

    Memory memory;
    Trace trace;
    Faults faults;
    Scheduler scheduler{memory, trace, settings};

    std::map<Handle, Context> contexts;
    std::map<Handle, std::shared_ptr<Stream>> streams;
    std::map<Handle, Event> events;
    std::map<Handle, Module> modules;
    std::map<Handle, Function> functions;

    // Looks like an address and is none.
    Handle new_handle() { return last_handle += 16; }
    bool device_exists(int device) const { return device >= 0 && static_cast<uint64_t>(device) < settings.devices; }
    // The context that is retained on a device; 0 if none is.
    Handle primary(int device) const;
    // A stream of this context, default streams included; null if there is no such stream.
    std::shared_ptr<Stream> stream(Handle handle, Handle context);
    // Ends a context: what is left in it is a leak.
    void end(Handle context);
    FakeLive live() const;
    void reset();
};

Driver &driver();
// The contexts that this thread has pushed.
std::vector<Handle> &current_contexts();

// One call of the API: takes the lock, fails if that was planned, and leaves its trace.
class Call {
public:
    explicit Call(const char *symbol, Handle stream = 0, uint64_t bytes = 0)
        : lock_(driver().mutex), symbol_(symbol), stream_(stream), bytes_(bytes) {}

    // `work` returns the result; it may be called in any state.
    template <typename F>
    Result always(F work) {
        Driver &d = driver();
        Result result = d.faults.next(symbol_);
        if (result == SUCCESS) result = work(d);
        d.trace.call(symbol_, stream_, bytes_, result);
        return result;
    }
    template <typename F>
    Result initialised(F work) {
        return always([&](Driver &d) { return d.initialised ? work(d) : NOT_INITIALIZED; });
    }
    // `work(driver, handle of the context, context)`; after a sticky error every such call returns it.
    template <typename F>
    Result in_context(F work) {
        return initialised([&](Driver &d) { return with_context(d, false, work); });
    }
    // As in_context, for calls that give something back: they do so even on a dead device.
    template <typename F>
    Result giving_back(F work) {
        return initialised([&](Driver &d) { return with_context(d, true, work); });
    }
    // Inside `work`: carries out operations until `done()`.
    template <typename F>
    Result run_until(Stream &target, F done) {
        Driver &d = driver();
        uint64_t life = d.life;
        for (;;) {
            auto dead = d.scheduler.dead.find(target.device);
            if (dead != d.scheduler.dead.end()) return dead->second;
            if (d.life != life) return CONTEXT_IS_DESTROYED;
            if (d.stalled) {
                d.changed.wait(lock_);
                continue;
            }
            d.scheduler.settle();
            if (done()) return SUCCESS;
            if (!d.scheduler.step(target)) return SUCCESS;
        }
    }
    // As a query does: a few operations. NOT_READY if that was not enough.
    template <typename F>
    Result run_a_little(Stream &target, F done) {
        Driver &d = driver();
        if (!d.stalled) {
            d.scheduler.settle();
            for (uint64_t i = 0; i < d.settings.ops_per_query && !done() && d.scheduler.step(target); ++i) {
            }
        }
        auto dead = d.scheduler.dead.find(target.device);
        if (dead != d.scheduler.dead.end()) return dead->second;
        return done() ? SUCCESS : NOT_READY;
    }

private:
    template <typename F>
    Result with_context(Driver &d, bool even_dead, F work) {
        const std::vector<Handle> &stack = current_contexts();
        auto found = stack.empty() ? d.contexts.end() : d.contexts.find(stack.back());
        if (found == d.contexts.end()) return INVALID_CONTEXT;
        if (found->second.retains == 0) return CONTEXT_IS_DESTROYED;
        auto dead = d.scheduler.dead.find(found->second.device);
        bool is_dead = dead != d.scheduler.dead.end();
        if (is_dead && !even_dead) return dead->second;
        Result result = work(d, found->first, found->second);
        return is_dead ? dead->second : result;
    }

    std::unique_lock<std::mutex> lock_;
    const char *symbol_;
    Handle stream_;
    uint64_t bytes_;
};

}  // namespace fake

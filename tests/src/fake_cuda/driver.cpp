#include "driver.h"

#include <algorithm>
#include <cstring>

#include "environment.h"

namespace fake {

FakeSettings usual_settings() {
    FakeSettings usual = {
        .seed = 0,
        .ops_per_query = 2,
        .driver_version = 12080,
        .devices = 1,
        .compute_capability = 90,
        .device_memory = uint64_t{16} << 30,
        // PCIe 5.0 x16 and HBM3e, roughly.
        .h2d_rate = 55'000,
        .d2h_rate = 53'000,
        .d2d_rate = 2'000'000,
        .cta_rate = 26'000,
        .kernel_link_rate = 50'000,
        .copy_latency_ns = 1500,
        .descriptor_ns = 500,
        .launch_ns = 3000,
    };
    apply_environment(usual);
    return usual;
}

Driver &driver() {
    // Never destroyed: threads may call the driver while the process ends.
    static Driver *the = new Driver;
    return *the;
}

std::vector<Handle> &current_contexts() {
    thread_local std::vector<Handle> stack;
    return stack;
}

Handle Driver::primary(int device) const {
    for (const auto &[handle, context] : contexts) {
        if (context.device == device && context.retains > 0) return handle;
    }
    return 0;
}

std::shared_ptr<Stream> Driver::stream(Handle handle, Handle context) {
    if (handle == LEGACY_STREAM_NAME) handle = LEGACY_STREAM;
    if (handle == LEGACY_STREAM) {
        for (const auto &stream : scheduler.streams()) {
            if (stream->handle == LEGACY_STREAM && stream->context == context) return stream;
        }
        return scheduler.add(LEGACY_STREAM, context, contexts.at(context).device, false, 0);
    }
    auto found = streams.find(handle);
    return found != streams.end() && found->second->context == context ? found->second : nullptr;
}

void Driver::end(Handle context) {
    int device = contexts.at(context).device;
    // The real one waits for what was submitted.
    for (bool more = !stalled; more;) {
        more = false;
        for (const auto &stream : std::vector(scheduler.streams())) {
            if (stream->context == context) more |= scheduler.step(*stream);
        }
    }
    scheduler.drop_queues(device);
    auto in_it = [context](const auto &object) { return object.second.context == context; };
    auto count = [&](const auto &objects) { return std::count_if(objects.begin(), objects.end(), in_it); };
    auto leak = [this](auto n, const char *what) {
        if (n > 0) trace.violation("a context ended with " + std::to_string(n) + " " + what + " in it");
    };
    leak(std::count_if(streams.begin(), streams.end(), [=](const auto &s) { return s.second->context == context; }), "streams");
    leak(count(events), "events");
    leak(count(modules), "modules");
    leak(count(memory.ranges()), "pieces of memory");
}

FakeLive Driver::live() const {
    FakeLive live = {};
    for (const auto &[handle, context] : contexts) live.contexts += context.retains;
    live.streams = streams.size();
    live.events = events.size();
    live.modules = modules.size();
    live.queued = scheduler.queued();
    for (const auto &[start, range] : memory.ranges()) {
        switch (range.kind) {
            case Kind::Device:
                ++live.device_allocations;
                live.device_bytes += range.bytes;
                break;
            case Kind::Imported: ++live.imports; break;
            case Kind::Pinned: ++live.pinned_allocations; break;
            case Kind::Registered: ++live.registrations; break;
        }
    }
    return live;
}

void Driver::reset() {
    settings = usual_settings();
    stalled = false;
    ++life;
    scheduler.clear();
    memory.release_all();
    trace = {};
    faults.clear();
    contexts.clear();
    streams.clear();
    events.clear();
    modules.clear();
    functions.clear();
    changed.notify_all();
}

}  // namespace fake

using namespace fake;

CONTROL size_t fake_settings_size() { return sizeof(FakeSettings); }

CONTROL void fake_settings(FakeSettings *out) {
    std::lock_guard lock(driver().mutex);
    *out = driver().settings;
}

CONTROL void fake_configure(const FakeSettings *settings) {
    std::lock_guard lock(driver().mutex);
    bool reseed = driver().settings.seed != settings->seed;
    driver().settings = *settings;
    if (reseed) driver().scheduler.reseed();
}

CONTROL void fake_reset() {
    std::lock_guard lock(driver().mutex);
    driver().reset();
}

CONTROL void fake_fail(const char *symbol, uint64_t nth, int64_t code, int64_t for_ever) {
    std::lock_guard lock(driver().mutex);
    driver().faults.add(symbol, nth, static_cast<Result>(code), for_ever != 0);
}

CONTROL void fake_die(uint64_t nth, int64_t code) {
    std::lock_guard lock(driver().mutex);
    Scheduler &scheduler = driver().scheduler;
    scheduler.die_in = nth;
    scheduler.die_code = static_cast<Result>(code);
    for (int i = 0; nth == 0 && driver().device_exists(i); ++i) scheduler.die(i, scheduler.die_code);
    driver().changed.notify_all();
}

CONTROL void fake_stall(int64_t stalled) {
    std::lock_guard lock(driver().mutex);
    driver().stalled = stalled != 0;
    driver().changed.notify_all();
}

CONTROL void fake_live(FakeLive *out) {
    std::lock_guard lock(driver().mutex);
    *out = driver().live();
}

CONTROL size_t fake_calls(FakeCall *out, size_t room) {
    std::lock_guard lock(driver().mutex);
    const auto &calls = driver().trace.calls;
    std::copy_n(calls.begin(), std::min(room, calls.size()), out);
    return calls.size();
}

CONTROL size_t fake_ops(FakeOp *out, size_t room) {
    std::lock_guard lock(driver().mutex);
    const auto &ops = driver().trace.ops;
    std::copy_n(ops.begin(), std::min(room, ops.size()), out);
    return ops.size();
}

CONTROL void fake_clear_trace() {
    std::lock_guard lock(driver().mutex);
    driver().trace.calls.clear();
    driver().trace.ops.clear();
}

CONTROL int64_t fake_violation(size_t index, char *out, size_t room) {
    std::lock_guard lock(driver().mutex);
    const auto &violations = driver().trace.violations;
    if (index >= violations.size() || room == 0) return 0;
    size_t n = violations[index].copy(out, room - 1);
    out[n] = 0;
    return 1;
}

CONTROL void fake_clear_violations() {
    std::lock_guard lock(driver().mutex);
    driver().trace.violations.clear();
}

CONTROL int64_t fake_peek(uint64_t address, void *out, size_t bytes) {
    std::lock_guard lock(driver().mutex);
    Range *range = driver().memory.find(address, bytes);
    if (range == nullptr || !range->on_device()) return 0;
    std::memcpy(out, range->store + (address - range->start), bytes);
    return 1;
}

CONTROL uint64_t fake_now_ns() {
    std::lock_guard lock(driver().mutex);
    return driver().scheduler.now_ns;
}

// How a test steers the fake driver and looks into it: the C side of `FakeCuda` in mod.rs. Every field is
// eight bytes wide, so that the mirror cannot disagree about padding.
#pragma once

#include <cstddef>
#include <cstdint>

#define CONTROL extern "C" __attribute__((visibility("default")))

// What is pretended. Mirrored by `Settings`.
struct FakeSettings {
    // Chooses among what may run next. 0: only what the caller waits for, and as late as possible.
    uint64_t seed;
    // Operations that one query of a stream or of an event carries out at most.
    uint64_t ops_per_query;
    // As cuDriverGetVersion says it: 1000 * major + 10 * minor.
    uint64_t driver_version;
    uint64_t devices;
    // 10 * major + minor.
    uint64_t compute_capability;
    // Bytes of each device; allocations beyond them fail.
    uint64_t device_memory;
    // The virtual clock: bytes per microsecond, that is MB/s.
    uint64_t h2d_rate;
    uint64_t d2h_rate;
    uint64_t d2d_rate;
    // What one block of threads of a kernel moves over the link, and the most that all of them do.
    uint64_t cta_rate;
    uint64_t kernel_link_rate;
    // Nanoseconds from the start of a copy to its first byte; overlaps with the copy before.
    uint64_t copy_latency_ns;
    // Nanoseconds of a copy engine for each descriptor, besides its bytes.
    uint64_t descriptor_ns;
    // Nanoseconds of a kernel that does nothing.
    uint64_t launch_ns;
};

// What there is now. Mirrored by `Live`.
struct FakeLive {
    uint64_t contexts;  // retains that were not released
    uint64_t streams;
    uint64_t events;
    uint64_t modules;
    uint64_t device_allocations;
    uint64_t device_bytes;
    uint64_t pinned_allocations;
    uint64_t registrations;
    uint64_t imports;  // IPC mappings
    uint64_t queued;   // operations that have not run
};

// A call of the driver. Mirrored by `RawCall`.
struct FakeCall {
    const char *symbol;
    uint64_t stream;
    uint64_t bytes;
    int64_t result;
    uint64_t times;  // equal calls in a row
};

// An operation that has run. Mirrored by `RawOp`.
struct FakeOp {
    const char *name;  // of the call, or of the kernel
    uint64_t stream;
    uint64_t sequence;  // counts submissions
    uint64_t bytes;
    uint64_t descriptors;
    uint64_t dst;  // of the first descriptor
    uint64_t src;
    uint64_t start_ns;  // virtual time
    uint64_t end_ns;
};

CONTROL size_t fake_settings_size();
CONTROL void fake_settings(FakeSettings *out);
CONTROL void fake_configure(const FakeSettings *settings);
// Forgets everything but that cuInit was called, and pretends the usual again.
CONTROL void fake_reset();

// The `nth` call from now (1: the next) of `symbol` ("*": of any) returns `code` and does nothing else; so
// do all later ones if `for_ever`.
CONTROL void fake_fail(const char *symbol, uint64_t nth, int64_t code, int64_t for_ever);
// The `nth` operation from now is not carried out; from then on its device answers `code` to everything.
// 0: every device, at once.
CONTROL void fake_die(uint64_t nth, int64_t code);
CONTROL void fake_stall(int64_t stalled);

CONTROL void fake_live(FakeLive *out);
// Each copies at most `room` entries and returns how many there are.
CONTROL size_t fake_calls(FakeCall *out, size_t room);
CONTROL size_t fake_ops(FakeOp *out, size_t room);
CONTROL void fake_clear_trace();
// The `index`th misuse that was seen, into `out` of `room` bytes; false if there are not so many.
CONTROL int64_t fake_violation(size_t index, char *out, size_t room);
CONTROL void fake_clear_violations();
// Bytes of device memory as they are now, whatever is queued. False if they are not allocated.
CONTROL int64_t fake_peek(uint64_t address, void *out, size_t bytes);
CONTROL uint64_t fake_now_ns();

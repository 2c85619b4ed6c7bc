// Streams, events and engines: what is submitted waits here until somebody asks for it.
//
//   submit ──► queue of a stream ──► (its events done, its engine's turn) ──► carried out ──► the trace
//
// Nothing moves by itself. A synchronisation carries out operations until what it waits for is done, a
// query carries out a few. Operations of a stream run in order. Of those that could run and need the same
// copy engine, the one that was submitted first goes first, whatever its stream: that is how an urgent copy
// comes to sit behind a large one.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "abi.h"
#include "control.h"
#include "memory.h"
#include "trace.h"

struct kv_host_kernel;

namespace fake {

struct Stream;

// One recording of an event.
struct Moment {
    std::shared_ptr<Stream> stream;
    bool done = false;
    uint64_t time_ns = 0;
};

// What one side of a copy was when it was submitted.
enum class Side { Device, PinnedHost, PageableHost };

struct Piece {
    Address dst;
    Address src;
    size_t bytes;
    Side dst_side;
    Side src_side;
    // The source, if it was read when the copy was submitted.
    std::shared_ptr<std::vector<unsigned char>> taken;
};

// Bits of the copy engines that an operation needs.
enum : unsigned { H2D_ENGINE = 1, D2H_ENGINE = 2 };

struct Op {
    enum class Kind { Copy, Fill, Kernel, Record, Wait } kind;
    const char *name;
    uint64_t sequence = 0;
    uint64_t submitted_ns = 0;
    unsigned engines = 0;
    // Copy; Fill: only dst and bytes.
    std::vector<Piece> pieces = {};
    unsigned char value = 0;
    // Kernel
    const kv_host_kernel *kernel = nullptr;
    std::vector<unsigned char> argument = {};
    uint32_t grid = 0, block = 0, shared_bytes = 0;
    // Record, Wait
    std::shared_ptr<Moment> moment = {};

    bool is_marker() const { return kind == Kind::Record || kind == Kind::Wait; }
    uint64_t bytes() const;
};

struct Stream {
    Handle handle;
    Handle context;
    int device;
    bool blocking;  // waits for the legacy default stream, and it for this one
    int priority;
    std::deque<Op> queue = {};
    uint64_t time_ns = 0;        // when its last operation ended
    unsigned last_engine = 0;    // of its last operation
    uint64_t last_latency_ns = 0;
};

struct Event {
    Handle context;
    bool timed;
    std::shared_ptr<Moment> moment;  // of its last recording
};

class Scheduler {
public:
    Scheduler(Memory &memory, Trace &trace, const FakeSettings &settings)
        : memory_(memory), trace_(trace), settings_(settings) {}

    std::shared_ptr<Stream> add(Handle handle, Handle context, int device, bool blocking, int priority);
    void submit(const std::shared_ptr<Stream> &stream, Op op);
    // A moment at which all that was submitted to the stream will be done.
    std::shared_ptr<Moment> record(const std::shared_ptr<Stream> &stream);
    void wait(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Moment> &moment);

    // Carries out at most one operation, so that `target` comes nearer to being empty. False if it is.
    bool step(Stream &target);
    // Notes what has come to its end without anything being carried out.
    void settle();
    // Drops the stream when its queue is empty.
    void forget(Handle stream);
    // Nothing of the device's queues will ever run.
    void drop_queues(int device);
    void clear();

    // Reads the source of a copy now.
    bool take(Piece &piece, const char *name);
    void die(int device, Result code);
    // What an address is now.
    Side side_of(Address address, size_t bytes);

    uint64_t queued() const;
    const std::vector<std::shared_ptr<Stream>> &streams() const { return streams_; }
    void reseed() { random_.seed(settings_.seed); }
    // Time of the host: moves when it sees that something is done.
    uint64_t now_ns = 0;
    // The error that ended each device.
    std::map<int, Result> dead;
    // The device of the nth operation from now ends with the code; 0: none does.
    uint64_t die_in = 0;
    Result die_code = 0;

private:
    Stream *on_the_way_to(Stream &target);
    Stream *first_on_engine(Stream &stream);
    void carry_out(Stream &stream);
    Result run(Op &op);
    bool copy(const Piece &piece, const char *name);
    bool run_kernel(Op &op);
    unsigned char *reach(Address address, size_t bytes, Side side, const char *what, const char *name);
    void account(Stream &stream, const Op &op);

    Memory &memory_;
    Trace &trace_;
    const FakeSettings &settings_;
    std::vector<std::shared_ptr<Stream>> streams_;
    std::vector<Handle> forgotten_;
    std::mt19937_64 random_;
    uint64_t sequence_ = 0;
    std::map<std::pair<int, unsigned>, uint64_t> engine_free_ns_;
};

}  // namespace fake

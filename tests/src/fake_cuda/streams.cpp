#include "streams.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cost.h"
#include "environment.h"
#include "guard.h"
#include "kernel.h"
#include "kv_host.h"

namespace fake {

uint64_t Op::bytes() const {
    uint64_t total = 0;
    for (const Piece &piece : pieces) total += piece.bytes;
    return total;
}

std::shared_ptr<Stream> Scheduler::add(Handle handle, Handle context, int device, bool blocking, int priority) {
    auto stream = std::make_shared<Stream>(Stream{handle, context, device, blocking, priority, {}});
    streams_.push_back(stream);
    return stream;
}

void Scheduler::submit(const std::shared_ptr<Stream> &stream, Op op) {
    // The legacy default stream and the blocking streams of its context take turns.
    bool legacy = stream->handle == LEGACY_STREAM;
    if (op.kind != Op::Kind::Wait && (legacy || stream->blocking)) {
        for (const auto &other : streams_) {
            bool turns = legacy ? other->blocking : other->handle == LEGACY_STREAM;
            if (other == stream || !turns || other->context != stream->context || other->queue.empty()) continue;
            auto moment = std::make_shared<Moment>(Moment{other});
            other->queue.push_back({.kind = Op::Kind::Record, .name = "", .sequence = ++sequence_, .moment = moment});
            wait(stream, moment);
        }
    }
    op.sequence = ++sequence_;
    op.submitted_ns = now_ns;
    stream->queue.push_back(std::move(op));
}

std::shared_ptr<Moment> Scheduler::record(const std::shared_ptr<Stream> &stream) {
    auto moment = std::make_shared<Moment>(Moment{stream});
    submit(stream, {.kind = Op::Kind::Record, .name = "cuEventRecord", .moment = moment});
    return moment;
}

void Scheduler::wait(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Moment> &moment) {
    submit(stream, {.kind = Op::Kind::Wait, .name = "cuStreamWaitEvent", .moment = moment});
}

void Scheduler::settle() {
    for (bool moved = true; moved;) {
        moved = false;
        for (const auto &stream : streams_) {
            while (!stream->queue.empty() && stream->queue.front().is_marker()) {
                Op &op = stream->queue.front();
                Moment &moment = *op.moment;
                if (op.kind == Op::Kind::Record) {
                    moment.done = true;
                    moment.time_ns = std::max(stream->time_ns, op.submitted_ns);
                } else if (!moment.done) {
                    break;
                } else if (moment.time_ns > stream->time_ns) {
                    stream->time_ns = moment.time_ns;
                    stream->last_engine = 0;
                }
                stream->queue.pop_front();
                moved = true;
            }
        }
    }
    std::erase_if(streams_, [this](const auto &stream) {
        return stream->queue.empty() && std::erase(forgotten_, stream->handle) > 0;
    });
}

bool Scheduler::step(Stream &target) {
    settle();
    if (target.queue.empty()) return false;
    Stream *next = &target;
    // Mostly anything that could run, unless the seed asks for the latest possible.
    if (settings_.seed != 0 && random_() % 4 != 0) {
        std::vector<Stream *> ready;
        for (const auto &stream : streams_) {
            if (!stream->queue.empty() && !stream->queue.front().is_marker()) ready.push_back(stream.get());
        }
        if (!ready.empty()) next = ready[random_() % ready.size()];
    }
    carry_out(*first_on_engine(*on_the_way_to(*next)));
    settle();
    return true;
}

// Follows the events that a stream waits for. It ends: only what was submitted before can be waited for.
Stream *Scheduler::on_the_way_to(Stream &target) {
    Stream *stream = &target;
    while (stream->queue.front().kind == Op::Kind::Wait) stream = stream->queue.front().moment->stream.get();
    return stream;
}

Stream *Scheduler::first_on_engine(Stream &stream) {
    const Op &op = stream.queue.front();
    Stream *first = &stream;
    for (const auto &other : streams_) {
        if (other->queue.empty() || other->device != stream.device) continue;
        const Op &rival = other->queue.front();
        if ((rival.engines & op.engines) != 0 && rival.sequence < first->queue.front().sequence) first = other.get();
    }
    return first;
}

void Scheduler::carry_out(Stream &stream) {
    Op op = std::move(stream.queue.front());
    stream.queue.pop_front();
    Result result = die_in > 0 && --die_in == 0 ? die_code : run(op);
    if (result == SUCCESS) {
        account(stream, op);
    } else {
        die(stream.device, result);
    }
}

void Scheduler::die(int device, Result code) {
    dead.emplace(device, code);
    drop_queues(device);
}

void Scheduler::drop_queues(int device) {
    for (const auto &stream : streams_) {
        if (stream->device != device) continue;
        for (const Op &op : stream->queue) {
            // Whoever waits on another device goes on; on this one nothing does.
            if (op.kind == Op::Kind::Record) op.moment->done = true;
        }
        stream->queue.clear();
    }
    settle();
}

void Scheduler::forget(Handle stream) {
    forgotten_.push_back(stream);
    settle();
}

void Scheduler::clear() {
    streams_.clear();
    forgotten_.clear();
    engine_free_ns_.clear();
    dead.clear();
    sequence_ = now_ns = die_in = 0;
    reseed();
}

uint64_t Scheduler::queued() const {
    uint64_t total = 0;
    for (const auto &stream : streams_) {
        total += std::count_if(stream->queue.begin(), stream->queue.end(), [](const Op &op) { return !op.is_marker(); });
    }
    return total;
}

Side Scheduler::side_of(Address address, size_t bytes) {
    if (memory_.is_device_address(address)) return Side::Device;
    return memory_.find(address, bytes) != nullptr ? Side::PinnedHost : Side::PageableHost;
}

Result Scheduler::run(Op &op) {
    if (is_broken(op.name)) break_op(op);
    switch (op.kind) {
        case Op::Kind::Copy: {
            // A batch has no order.
            std::vector<Piece> &pieces = op.pieces;
            if (settings_.seed != 0) std::shuffle(pieces.begin(), pieces.end(), random_);
            for (const Piece &piece : pieces) {
                if (!copy(piece, op.name)) return ILLEGAL_ADDRESS;
            }
            return SUCCESS;
        }
        case Op::Kind::Fill: {
            const Piece &piece = op.pieces.front();
            unsigned char *dst = reach(piece.dst, piece.bytes, piece.dst_side, "destination", op.name);
            if (dst == nullptr) return ILLEGAL_ADDRESS;
            std::memset(dst, op.value, piece.bytes);
            return SUCCESS;
        }
        case Op::Kind::Kernel:
            return run_kernel(op) ? SUCCESS : ILLEGAL_ADDRESS;
        case Op::Kind::Record:
        case Op::Kind::Wait:
            break;
    }
    return SUCCESS;
}

bool Scheduler::copy(const Piece &piece, const char *name) {
    const unsigned char *src = piece.taken != nullptr
                                   ? piece.taken->data()
                                   : reach(piece.src, piece.bytes, piece.src_side, "source", name);
    if (src == nullptr) return false;
    unsigned char *dst = reach(piece.dst, piece.bytes, piece.dst_side, "destination", name);
    if (dst == nullptr) return false;
    size_t bytes = piece.bytes;
    if (first_fault([=] { std::memmove(dst, src, bytes); }) == 0) return true;
    trace_.violation(std::string(name) + ": the host memory is not mapped");
    return false;
}

bool Scheduler::take(Piece &piece, const char *name) {
    const unsigned char *src = reach(piece.src, piece.bytes, piece.src_side, "source", name);
    if (src == nullptr) return false;
    piece.taken = std::make_shared<std::vector<unsigned char>>(src, src + piece.bytes);
    return true;
}

// Where the bytes are, if the device may still touch them.
unsigned char *Scheduler::reach(Address address, size_t bytes, Side side, const char *what, const char *name) {
    Range *range = memory_.find(address, bytes);
    if (range != nullptr) return range->store + (address - range->start);
    if (side == Side::PageableHost) return reinterpret_cast<unsigned char *>(address);
    char text[160];
    std::snprintf(text, sizeof text, "%s: the %s, %zu bytes at %#lx, is not %s memory (any more)", name, what, bytes,
                  static_cast<unsigned long>(address), side == Side::Device ? "allocated device" : "pinned host");
    trace_.violation(text);
    return nullptr;
}

bool Scheduler::run_kernel(Op &op) {
    std::string trespass = trespass_of(op, memory_);
    if (!trespass.empty()) {
        trace_.violation(std::string(op.name) + ": " + trespass);
        return false;
    }
    void *params[] = {op.argument.data()};
    memory_.open_device_memory(true);
    uint64_t fault = first_fault([&op, &params] { op.kernel->run(op.grid, op.block, op.shared_bytes, params); });
    memory_.open_device_memory(false);
    if (fault == 0) return true;
    char text[160];
    std::snprintf(text, sizeof text, "%s: touches %#lx, where nothing is", op.name, static_cast<unsigned long>(fault));
    trace_.violation(text);
    return false;
}

void Scheduler::account(Stream &stream, const Op &op) {
    Cost cost = cost_of(op, settings_, memory_);
    uint64_t start = std::max(stream.time_ns, op.submitted_ns);
    // The latency of a copy overlaps with the copy before on the same engine.
    if (op.engines != 0 && stream.last_engine == op.engines && stream.time_ns >= op.submitted_ns) {
        start = std::max(start - stream.last_latency_ns, op.submitted_ns);
    }
    for (unsigned engine : {H2D_ENGINE, D2H_ENGINE}) {
        if ((op.engines & engine) != 0) start = std::max(start, engine_free_ns_[{stream.device, engine}]);
    }
    for (unsigned engine : {H2D_ENGINE, D2H_ENGINE}) {
        if ((op.engines & engine) != 0) engine_free_ns_[{stream.device, engine}] = start + cost.busy_ns;
    }
    stream.time_ns = start + cost.busy_ns + cost.latency_ns;
    stream.last_engine = op.engines;
    stream.last_latency_ns = cost.latency_ns;
    Address dst = op.pieces.empty() ? 0 : op.pieces.front().dst;
    Address src = op.pieces.empty() ? 0 : op.pieces.front().src;
    trace_.ops.push_back({op.name, stream.handle, op.sequence, cost.bytes, op.pieces.size(), dst, src, start, stream.time_ns});
}

}  // namespace fake

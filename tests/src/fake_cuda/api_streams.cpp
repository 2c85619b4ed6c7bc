// Streams, events, copies and fills.
#include "driver.h"

using namespace fake;

namespace {

// Notes what a GPU would have done for the caller without a word.
Side side_for(Driver &d, const char *symbol, Address address, size_t bytes) {
    Side side = d.scheduler.side_of(address, bytes);
    if (side == Side::PageableHost) d.trace.violation(std::string(symbol) + ": the host memory is not pinned");
    return side;
}

unsigned engines_of(const Piece &piece) {
    bool from_device = piece.src_side == Side::Device, to_device = piece.dst_side == Side::Device;
    if (from_device == to_device) return 0;
    return to_device ? H2D_ENGINE : D2H_ENGINE;
}

// The part of a range that is pinned may not end within it.
bool half_pinned(Driver &d, Address address, size_t bytes) {
    return !d.memory.is_device_address(address) && d.memory.find(address, bytes) == nullptr &&
           d.memory.touches(address, bytes);
}

// A direction that the caller promised; Any: what the addresses say.
enum class Direction { Any, HostToDevice, DeviceToHost, DeviceToDevice };

Result copy(const char *symbol, Address dst, Address src, size_t bytes, Handle handle, Direction direction) {
    return Call(symbol, handle, bytes).in_context([&](Driver &d, Handle context, Context &) -> Result {
        if (handle == PER_THREAD_STREAM) return NOT_SUPPORTED;
        auto stream = d.stream(handle, context);
        if (stream == nullptr) return INVALID_HANDLE;
        if (bytes == 0) return SUCCESS;
        if (half_pinned(d, dst, bytes) || half_pinned(d, src, bytes)) return INVALID_VALUE;
        Piece piece{dst, src, bytes, Side::Device, Side::Device, nullptr};
        if (direction == Direction::Any || direction == Direction::DeviceToHost) {
            piece.dst_side = side_for(d, symbol, dst, bytes);
        }
        if (direction == Direction::Any || direction == Direction::HostToDevice) {
            piece.src_side = side_for(d, symbol, src, bytes);
        }
        Op op{.kind = Op::Kind::Copy, .name = symbol, .engines = engines_of(piece)};
        op.pieces.push_back(std::move(piece));
        d.scheduler.submit(stream, std::move(op));
        return SUCCESS;
    });
}

}  // namespace

API cuStreamCreateWithPriority(Handle *out, unsigned flags, int priority) {
    return Call("cuStreamCreateWithPriority").in_context([&](Driver &d, Handle context, Context &c) -> Result {
        if (out == nullptr || (flags & ~STREAM_NON_BLOCKING) != 0) return INVALID_VALUE;
        Handle handle = d.new_handle();
        bool blocking = (flags & STREAM_NON_BLOCKING) == 0;
        d.streams[handle] = d.scheduler.add(handle, context, c.device, blocking, priority);
        *out = handle;
        return SUCCESS;
    });
}

API cuStreamDestroy_v2(Handle handle) {
    return Call("cuStreamDestroy_v2", handle).giving_back([&](Driver &d, Handle, Context &) -> Result {
        // What was submitted still runs.
        if (d.streams.erase(handle) == 0) return INVALID_HANDLE;
        d.scheduler.forget(handle);
        return SUCCESS;
    });
}

API cuStreamSynchronize(Handle handle) {
    Call call("cuStreamSynchronize", handle);
    return call.in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto stream = d.stream(handle, context);
        if (stream == nullptr) return INVALID_HANDLE;
        Result result = call.run_until(*stream, [&] { return stream->queue.empty(); });
        if (result == SUCCESS) d.scheduler.now_ns = std::max(d.scheduler.now_ns, stream->time_ns);
        return result;
    });
}

API cuStreamQuery(Handle handle) {
    Call call("cuStreamQuery", handle);
    return call.in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto stream = d.stream(handle, context);
        if (stream == nullptr) return INVALID_HANDLE;
        Result result = call.run_a_little(*stream, [&] { return stream->queue.empty(); });
        if (result == SUCCESS) d.scheduler.now_ns = std::max(d.scheduler.now_ns, stream->time_ns);
        return result;
    });
}

API cuStreamWaitEvent(Handle handle, Handle event, unsigned flags) {
    return Call("cuStreamWaitEvent", handle).in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto stream = d.stream(handle, context);
        auto found = d.events.find(event);
        if (stream == nullptr || found == d.events.end()) return INVALID_HANDLE;
        if (flags != 0) return INVALID_VALUE;
        // An event that was never recorded is waited for no time.
        if (found->second.moment != nullptr) d.scheduler.wait(stream, found->second.moment);
        return SUCCESS;
    });
}

API cuEventCreate(Handle *out, unsigned flags) {
    return Call("cuEventCreate").in_context([&](Driver &d, Handle context, Context &) -> Result {
        if (out == nullptr || (flags & ~7u) != 0) return INVALID_VALUE;
        *out = d.new_handle();
        d.events[*out] = {context, (flags & EVENT_DISABLE_TIMING) == 0, nullptr};
        return SUCCESS;
    });
}

API cuEventDestroy_v2(Handle event) {
    return Call("cuEventDestroy_v2").giving_back([&](Driver &d, Handle, Context &) -> Result {
        return d.events.erase(event) == 0 ? INVALID_HANDLE : SUCCESS;
    });
}

API cuEventRecord(Handle event, Handle handle) {
    return Call("cuEventRecord", handle).in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto stream = d.stream(handle, context);
        auto found = d.events.find(event);
        if (stream == nullptr || found == d.events.end() || found->second.context != context) return INVALID_HANDLE;
        found->second.moment = d.scheduler.record(stream);
        return SUCCESS;
    });
}

API cuEventQuery(Handle event) {
    Call call("cuEventQuery");
    return call.in_context([&](Driver &d, Handle, Context &) -> Result {
        auto found = d.events.find(event);
        if (found == d.events.end()) return INVALID_HANDLE;
        auto moment = found->second.moment;
        if (moment == nullptr) return SUCCESS;
        Result result = call.run_a_little(*moment->stream, [&] { return moment->done; });
        if (result == SUCCESS) d.scheduler.now_ns = std::max(d.scheduler.now_ns, moment->time_ns);
        return result;
    });
}

API cuEventSynchronize(Handle event) {
    Call call("cuEventSynchronize");
    return call.in_context([&](Driver &d, Handle, Context &) -> Result {
        auto found = d.events.find(event);
        if (found == d.events.end()) return INVALID_HANDLE;
        auto moment = found->second.moment;
        if (moment == nullptr) return SUCCESS;
        Result result = call.run_until(*moment->stream, [&] { return moment->done; });
        if (result == SUCCESS) d.scheduler.now_ns = std::max(d.scheduler.now_ns, moment->time_ns);
        return result;
    });
}

API cuEventElapsedTime(float *milliseconds, Handle start, Handle end) {
    return Call("cuEventElapsedTime").in_context([&](Driver &d, Handle, Context &) -> Result {
        d.scheduler.settle();
        auto from = d.events.find(start), to = d.events.find(end);
        for (auto found : {from, to}) {
            if (found == d.events.end() || !found->second.timed || found->second.moment == nullptr) return INVALID_HANDLE;
        }
        const Moment &first = *from->second.moment, &last = *to->second.moment;
        if (!first.done || !last.done) return NOT_READY;
        *milliseconds = static_cast<float>((static_cast<double>(last.time_ns) - static_cast<double>(first.time_ns)) / 1e6);
        return SUCCESS;
    });
}

API cuMemcpyHtoDAsync_v2(Address dst, const void *src, size_t bytes, Handle stream) {
    return copy("cuMemcpyHtoDAsync_v2", dst, reinterpret_cast<Address>(src), bytes, stream, Direction::HostToDevice);
}

API cuMemcpyDtoHAsync_v2(void *dst, Address src, size_t bytes, Handle stream) {
    return copy("cuMemcpyDtoHAsync_v2", reinterpret_cast<Address>(dst), src, bytes, stream, Direction::DeviceToHost);
}

API cuMemcpyDtoDAsync_v2(Address dst, Address src, size_t bytes, Handle stream) {
    return copy("cuMemcpyDtoDAsync_v2", dst, src, bytes, stream, Direction::DeviceToDevice);
}

API cuMemcpyAsync(Address dst, Address src, size_t bytes, Handle stream) {
    return copy("cuMemcpyAsync", dst, src, bytes, stream, Direction::Any);
}

API cuMemsetD8Async(Address dst, unsigned char value, size_t bytes, Handle handle) {
    return Call("cuMemsetD8Async", handle, bytes).in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto stream = d.stream(handle, context);
        if (stream == nullptr) return INVALID_HANDLE;
        if (bytes == 0) return SUCCESS;
        Side side = side_for(d, "cuMemsetD8Async", dst, bytes);
        Op op{.kind = Op::Kind::Fill, .name = "cuMemsetD8Async", .value = value};
        op.pieces.push_back({dst, 0, bytes, side, side, nullptr});
        d.scheduler.submit(stream, std::move(op));
        return SUCCESS;
    });
}

#ifndef FAKE_NO_BATCH
API cuMemcpyBatchAsync(Address *dsts, Address *srcs, size_t *sizes, size_t count, CopyAttributes *attributes,
                       size_t *first_of, size_t num_attributes, size_t *failed, Handle handle) {
    uint64_t total = 0;
    for (size_t i = 0; sizes != nullptr && i < count; ++i) total += sizes[i];
    return Call("cuMemcpyBatchAsync", handle, total).in_context([&](Driver &d, Handle context, Context &) -> Result {
        // No single copy is to blame.
        if (failed != nullptr) *failed = SIZE_MAX;
        if (handle <= PER_THREAD_STREAM) return INVALID_VALUE;
        auto stream = d.stream(handle, context);
        if (stream == nullptr) return INVALID_HANDLE;
        if (count == 0 || num_attributes == 0 || num_attributes > count || first_of[0] != 0) return INVALID_VALUE;
        for (size_t k = 0; k < num_attributes; ++k) {
            int order = attributes[k].src_access_order;
            if (order < ACCESS_IN_STREAM || order > ACCESS_ANY) return INVALID_VALUE;
            if (first_of[k] >= count || (k > 0 && first_of[k] <= first_of[k - 1])) return INVALID_VALUE;
        }
        Op op{.kind = Op::Kind::Copy, .name = "cuMemcpyBatchAsync"};
        for (size_t i = 0, k = 0; i < count; ++i) {
            if (k + 1 < num_attributes && first_of[k + 1] == i) ++k;
            if (sizes[i] == 0 || half_pinned(d, dsts[i], sizes[i]) || half_pinned(d, srcs[i], sizes[i])) {
                if (failed != nullptr) *failed = i;
                return INVALID_VALUE;
            }
            Piece piece{dsts[i], srcs[i], sizes[i], side_for(d, "cuMemcpyBatchAsync", dsts[i], sizes[i]),
                        d.scheduler.side_of(srcs[i], sizes[i]), nullptr};
            int order = attributes[k].src_access_order;
            if (piece.src_side == Side::PageableHost && order == ACCESS_IN_STREAM) {
                d.trace.violation("cuMemcpyBatchAsync: the host memory is not pinned");
            }
            // Out of the order of the stream is as early as can be, the worst case for a caller.
            if (order != ACCESS_IN_STREAM && !d.scheduler.take(piece, "cuMemcpyBatchAsync")) return ILLEGAL_ADDRESS;
            op.engines |= engines_of(piece);
            op.pieces.push_back(std::move(piece));
        }
        d.scheduler.submit(stream, std::move(op));
        return SUCCESS;
    });
}
#endif

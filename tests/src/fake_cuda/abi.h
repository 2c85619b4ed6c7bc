// The part of the CUDA driver's ABI that kvtier uses, after the public reference of CUDA 12.8. Contexts,
// streams, events, modules and functions are opaque pointers there; here they are numbers that are never
// used twice, so that a stale handle is told from a live one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fake {

using Result = int;
using Handle = uint64_t;
using Address = uint64_t;

enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    MAPPING_FAILED = 205,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    NOT_SUPPORTED = 801,
};

struct Uuid {
    unsigned char bytes[16];
};

struct IpcMemHandle {
    unsigned char reserved[64];
};

struct MemLocation {
    int type;
    int id;
};

// CUmemcpyAttributes
struct CopyAttributes {
    int src_access_order;
    MemLocation src_hint;
    MemLocation dst_hint;
    unsigned flags;
};

// CUmemcpySrcAccessOrder
enum : int { ACCESS_IN_STREAM = 1, ACCESS_DURING_CALL = 2, ACCESS_ANY = 3 };

enum : unsigned { STREAM_NON_BLOCKING = 1, EVENT_DISABLE_TIMING = 2 };

// The legacy default stream has two names; the per-thread one is not supported.
constexpr Handle LEGACY_STREAM = 0, LEGACY_STREAM_NAME = 1, PER_THREAD_STREAM = 2;

}  // namespace fake

#define API extern "C" __attribute__((visibility("default"))) fake::Result

// Allocation, pinning, questions about pointers, IPC.
#include <sys/mman.h>

#include <cstring>

#include "driver.h"

using namespace fake;

API cuMemAlloc_v2(Address *out, size_t bytes) {
    return Call("cuMemAlloc_v2", 0, bytes).in_context([&](Driver &d, Handle context, Context &c) -> Result {
        if (out == nullptr || bytes == 0) return INVALID_VALUE;
        size_t used = d.memory.device_bytes(c.device);
        if (used > d.settings.device_memory || bytes > d.settings.device_memory - used) return OUT_OF_MEMORY;
        Range *range = d.memory.allocate_device(bytes, context, c.device);
        if (range == nullptr) return OUT_OF_MEMORY;
        *out = range->start;
        return SUCCESS;
    });
}

API cuMemFree_v2(Address address) {
    return Call("cuMemFree_v2").giving_back([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.starting_at(address);
        if (range == nullptr || range->kind != Kind::Device) return INVALID_VALUE;
        // The bytes go, and the importers will notice.
        for (Address import : d.memory.imports_of(address)) {
            d.trace.violation("cuMemFree_v2: the memory is still imported elsewhere");
            d.memory.release(import);
        }
        d.memory.release(address);
        return SUCCESS;
    });
}

API cuMemGetInfo_v2(size_t *available, size_t *total) {
    return Call("cuMemGetInfo_v2").in_context([&](Driver &d, Handle, Context &c) -> Result {
        size_t used = d.memory.device_bytes(c.device);
        *available = used > d.settings.device_memory ? 0 : d.settings.device_memory - used;
        *total = d.settings.device_memory;
        return SUCCESS;
    });
}

API cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    return Call("cuMemHostAlloc", 0, bytes).in_context([&](Driver &d, Handle context, Context &c) -> Result {
        // PORTABLE, DEVICEMAP, WRITECOMBINED
        if (out == nullptr || bytes == 0 || (flags & ~7u) != 0) return INVALID_VALUE;
        Range *range = d.memory.allocate_pinned(bytes, context, c.device);
        if (range == nullptr) return OUT_OF_MEMORY;
        *out = range->store;
        return SUCCESS;
    });
}

API cuMemFreeHost(void *p) {
    return Call("cuMemFreeHost").giving_back([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.starting_at(reinterpret_cast<Address>(p));
        if (range == nullptr || range->kind != Kind::Pinned) return INVALID_VALUE;
        d.memory.release(range->start);
        return SUCCESS;
    });
}

API cuMemHostRegister_v2(void *p, size_t bytes, unsigned flags) {
    return Call("cuMemHostRegister_v2", 0, bytes).in_context([&](Driver &d, Handle context, Context &c) -> Result {
        auto start = reinterpret_cast<Address>(p);
        // PORTABLE, DEVICEMAP, IOMEMORY, READ_ONLY
        if (p == nullptr || bytes == 0 || (flags & ~15u) != 0 || d.memory.is_device_address(start)) return INVALID_VALUE;
        // Memory that is not there cannot be pinned.
        constexpr Address PAGE = 4096;
        std::vector<unsigned char> resident((bytes + start % PAGE + PAGE - 1) / PAGE);
        if (mincore(reinterpret_cast<void *>(start / PAGE * PAGE), bytes + start % PAGE, resident.data()) != 0) {
            return INVALID_VALUE;
        }
        return d.memory.register_host(start, bytes, context, c.device) != nullptr ? SUCCESS : HOST_MEMORY_ALREADY_REGISTERED;
    });
}

API cuMemHostUnregister(void *p) {
    return Call("cuMemHostUnregister").giving_back([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.starting_at(reinterpret_cast<Address>(p));
        if (range == nullptr) return HOST_MEMORY_NOT_REGISTERED;
        if (range->kind != Kind::Registered) return INVALID_VALUE;
        d.memory.release(range->start);
        return SUCCESS;
    });
}

API cuMemHostGetDevicePointer_v2(Address *out, void *p, unsigned flags) {
    return Call("cuMemHostGetDevicePointer_v2").in_context([&](Driver &d, Handle, Context &) -> Result {
        auto address = reinterpret_cast<Address>(p);
        Range *range = d.memory.find(address, 1);
        if (range == nullptr || range->on_device() || flags != 0) return INVALID_VALUE;
        // One address space, as on every 64-bit Linux.
        *out = address;
        return SUCCESS;
    });
}

API cuPointerGetAttribute(void *out, int attribute, Address address) {
    return Call("cuPointerGetAttribute").in_context([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.find(address, 1);
        if (out == nullptr || range == nullptr) return INVALID_VALUE;
        unsigned type = range->on_device() ? 2 : 1;  // CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST
        switch (attribute) {
            case 1: std::memcpy(out, &range->context, sizeof range->context); break;  // CONTEXT
            case 2: std::memcpy(out, &type, sizeof type); break;                      // MEMORY_TYPE
            case 9: std::memcpy(out, &range->device, sizeof range->device); break;    // DEVICE_ORDINAL
            case 11: std::memcpy(out, &range->start, sizeof range->start); break;     // RANGE_START_ADDR
            case 12: std::memcpy(out, &range->bytes, sizeof range->bytes); break;     // RANGE_SIZE
            default: return INVALID_VALUE;
        }
        return SUCCESS;
    });
}

namespace {

// What a handle holds. Addresses are never used twice, so one names an allocation for good.
struct Exported {
    char magic[8];
    Address address;
    size_t bytes;
};
static_assert(sizeof(Exported) <= sizeof(IpcMemHandle));
constexpr char MAGIC[8] = {'f', 'a', 'k', 'e', ' ', 'I', 'P', 'C'};

}  // namespace

API cuIpcGetMemHandle(IpcMemHandle *out, Address address) {
    return Call("cuIpcGetMemHandle").in_context([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.starting_at(address);
        if (out == nullptr || range == nullptr || range->kind != Kind::Device) return INVALID_VALUE;
        Exported exported = {};
        std::memcpy(exported.magic, MAGIC, sizeof MAGIC);
        exported.address = address;
        exported.bytes = range->bytes;
        std::memset(out, 0, sizeof *out);
        std::memcpy(out, &exported, sizeof exported);
        return SUCCESS;
    });
}

// The real driver refuses a handle of the very process that made it (INVALID_CONTEXT). Here it opens, as if
// it came from elsewhere: the importing side is what there is to test, and one process is what tests have.
API cuIpcOpenMemHandle_v2(Address *out, IpcMemHandle handle, unsigned flags) {
    return Call("cuIpcOpenMemHandle_v2").in_context([&](Driver &d, Handle context, Context &) -> Result {
        Exported exported;
        std::memcpy(&exported, &handle, sizeof exported);
        if (out == nullptr || flags != 1) return INVALID_VALUE;  // LAZY_ENABLE_PEER_ACCESS
        if (std::memcmp(exported.magic, MAGIC, sizeof MAGIC) != 0) return INVALID_HANDLE;
        Range *source = d.memory.starting_at(exported.address);
        if (source == nullptr || source->kind != Kind::Device) return INVALID_HANDLE;
        for (const auto &[start, range] : d.memory.ranges()) {
            if (range.kind == Kind::Imported && range.exported == exported.address && range.context == context) {
                ++d.memory.starting_at(start)->opens;
                *out = start;
                return SUCCESS;
            }
        }
        Range *range = d.memory.import(*source, context);
        if (range == nullptr) return MAPPING_FAILED;
        *out = range->start;
        return SUCCESS;
    });
}

API cuIpcCloseMemHandle(Address address) {
    return Call("cuIpcCloseMemHandle").giving_back([&](Driver &d, Handle, Context &) -> Result {
        Range *range = d.memory.starting_at(address);
        if (range == nullptr || range->kind != Kind::Imported) return INVALID_VALUE;
        if (--range->opens == 0) d.memory.release(address);
        return SUCCESS;
    });
}

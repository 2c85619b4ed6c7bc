// Version, devices, contexts, names of errors.
#include <cstdio>
#include <cstring>

#include "driver.h"

using namespace fake;

API cuInit(unsigned flags) {
    return Call("cuInit").always([&](Driver &d) -> Result {
        if (flags != 0) return INVALID_VALUE;
        if (d.settings.devices == 0) return NO_DEVICE;
        d.initialised = true;
        return SUCCESS;
    });
}

API cuDriverGetVersion(int *version) {
    return Call("cuDriverGetVersion").always([&](Driver &d) -> Result {
        if (version == nullptr) return INVALID_VALUE;
        *version = static_cast<int>(d.settings.driver_version);
        return SUCCESS;
    });
}

API cuDeviceGetCount(int *count) {
    return Call("cuDeviceGetCount").initialised([&](Driver &d) -> Result {
        *count = static_cast<int>(d.settings.devices);
        return SUCCESS;
    });
}

API cuDeviceGet(int *device, int ordinal) {
    return Call("cuDeviceGet").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(ordinal)) return INVALID_DEVICE;
        *device = ordinal;
        return SUCCESS;
    });
}

API cuDeviceGetName(char *name, int room, int device) {
    return Call("cuDeviceGetName").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        if (name == nullptr || room <= 0) return INVALID_VALUE;
        std::snprintf(name, static_cast<size_t>(room), "kvtier fake device %d", device);
        return SUCCESS;
    });
}

API cuDeviceGetUuid_v2(Uuid *uuid, int device) {
    return Call("cuDeviceGetUuid_v2").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        std::memcpy(uuid->bytes, "kvtier fake GPU", 16);
        uuid->bytes[15] = static_cast<unsigned char>(device);
        return SUCCESS;
    });
}

API cuDeviceGetPCIBusId(char *id, int room, int device) {
    return Call("cuDeviceGetPCIBusId").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        if (id == nullptr || room < 13) return INVALID_VALUE;
        std::snprintf(id, static_cast<size_t>(room), "0000:%02X:00.0", device + 1);
        return SUCCESS;
    });
}

API cuDeviceTotalMem_v2(size_t *bytes, int device) {
    return Call("cuDeviceTotalMem_v2").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        *bytes = d.settings.device_memory;
        return SUCCESS;
    });
}

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    return Call("cuDeviceGetAttribute").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        auto capability = static_cast<int>(d.settings.compute_capability);
        switch (attribute) {
            case 1: *value = 1024; break;              // MAX_THREADS_PER_BLOCK
            case 5: *value = 0x7FFFFFFF; break;        // MAX_GRID_DIM_X
            case 8: *value = 48 * 1024; break;         // MAX_SHARED_MEMORY_PER_BLOCK
            case 10: *value = 32; break;               // WARP_SIZE
            case 16: *value = 132; break;              // MULTIPROCESSOR_COUNT
            case 19: *value = 1; break;                // CAN_MAP_HOST_MEMORY
            case 33: *value = device + 1; break;       // PCI_BUS_ID
            case 34: *value = 0; break;                // PCI_DEVICE_ID
            case 39: *value = 2048; break;             // MAX_THREADS_PER_MULTIPROCESSOR
            case 40: *value = 3; break;                // ASYNC_ENGINE_COUNT
            case 41: *value = 1; break;                // UNIFIED_ADDRESSING
            case 50: *value = 0; break;                // PCI_DOMAIN_ID
            case 75: *value = capability / 10; break;  // COMPUTE_CAPABILITY_MAJOR
            case 76: *value = capability % 10; break;  // COMPUTE_CAPABILITY_MINOR
            case 78: *value = 1; break;                // STREAM_PRIORITIES_SUPPORTED
            case 88: *value = 0; break;                // PAGEABLE_MEMORY_ACCESS
            case 91: *value = 1; break;                // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
            case 97: *value = 227 * 1024; break;       // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            case 99: *value = 1; break;                // HOST_REGISTER_SUPPORTED
            default: return INVALID_VALUE;
        }
        return SUCCESS;
    });
}

API cuDevicePrimaryCtxRetain(Handle *out, int device) {
    return Call("cuDevicePrimaryCtxRetain").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        auto dead = d.scheduler.dead.find(device);
        if (dead != d.scheduler.dead.end()) return dead->second;
        Handle handle = d.primary(device);
        if (handle == 0) {
            handle = d.new_handle();
            d.contexts[handle] = {device, 0};
        }
        ++d.contexts[handle].retains;
        *out = handle;
        return SUCCESS;
    });
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    return Call("cuDevicePrimaryCtxRelease_v2").initialised([&](Driver &d) -> Result {
        if (!d.device_exists(device)) return INVALID_DEVICE;
        Handle handle = d.primary(device);
        if (handle == 0) return INVALID_CONTEXT;
        if (--d.contexts[handle].retains == 0) d.end(handle);
        return SUCCESS;
    });
}

API cuCtxPushCurrent_v2(Handle context) {
    return Call("cuCtxPushCurrent_v2").initialised([&](Driver &d) -> Result {
        if (!d.contexts.contains(context)) return INVALID_CONTEXT;
        current_contexts().push_back(context);
        return SUCCESS;
    });
}

API cuCtxPopCurrent_v2(Handle *context) {
    return Call("cuCtxPopCurrent_v2").initialised([&](Driver &) -> Result {
        auto &stack = current_contexts();
        if (stack.empty()) return INVALID_CONTEXT;
        if (context != nullptr) *context = stack.back();
        stack.pop_back();
        return SUCCESS;
    });
}

API cuCtxGetCurrent(Handle *context) {
    return Call("cuCtxGetCurrent").initialised([&](Driver &d) -> Result {
        const auto &stack = current_contexts();
        // A context of before a reset is none.
        *context = !stack.empty() && d.contexts.contains(stack.back()) ? stack.back() : 0;
        return SUCCESS;
    });
}

API cuCtxSetCurrent(Handle context) {
    return Call("cuCtxSetCurrent").initialised([&](Driver &d) -> Result {
        if (context != 0 && !d.contexts.contains(context)) return INVALID_CONTEXT;
        auto &stack = current_contexts();
        if (!stack.empty()) stack.pop_back();
        if (context != 0) stack.push_back(context);
        return SUCCESS;
    });
}

API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return Call("cuCtxGetStreamPriorityRange").in_context([&](Driver &, Handle, Context &) -> Result {
        if (least != nullptr) *least = 0;
        if (greatest != nullptr) *greatest = -5;
        return SUCCESS;
    });
}

namespace {

struct ErrorName {
    Result code;
    const char *name;
    const char *text;
};

constexpr ErrorName ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {MAPPING_FAILED, "CUDA_ERROR_MAP_FAILED", "mapping of buffer object failed"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

Result describe(Result code, const char **out, const char *ErrorName::*field) {
    *out = nullptr;
    for (const ErrorName &error : ERRORS) {
        if (error.code == code) *out = error.*field;
    }
    return *out == nullptr ? INVALID_VALUE : SUCCESS;
}

}  // namespace

// Not traced: they tell of other calls.
API cuGetErrorName(Result code, const char **name) { return describe(code, name, &ErrorName::name); }
API cuGetErrorString(Result code, const char **text) { return describe(code, text, &ErrorName::text); }

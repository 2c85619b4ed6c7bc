// Modules, functions, launches.
#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>

#include "driver.h"
#include "kv_host.h"

using namespace fake;

namespace {

struct Ptx {
    unsigned version = 0;  // 10 * major + minor
    unsigned target = 0;   // 10 * major + minor
    char variant = 0;      // 'a': this architecture only; 'f': its family
    std::map<std::string, Entry> entries;
};

// Directives as the PTX reference has them, one a line.
Ptx parse(const std::string &text) {
    Ptx ptx;
    Entry *entry = nullptr;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        line.resize(std::min(line.size(), line.find("//")));
        unsigned major = 0, minor = 0, number = 0;
        char name[256];
        const char *start = line.c_str();
        if (std::sscanf(start, " .version %u.%u", &major, &minor) == 2) ptx.version = 10 * major + minor;
        std::sscanf(start, " .target sm_%u%c", &ptx.target, &ptx.variant);
        size_t at = line.find(".entry");
        if (at != std::string::npos && std::sscanf(start + at, ".entry %255[A-Za-z0-9_$]", name) == 1) {
            entry = &ptx.entries[name];
        }
        if (entry == nullptr) continue;
        if (std::sscanf(start, " .param .align %*u .b8 %*[A-Za-z0-9_$][%u]", &number) == 1) entry->argument_bytes += number;
        if (std::sscanf(start, " .maxntid %u", &number) == 1) entry->most_threads = number;
        if (line.find('{') != std::string::npos) entry = nullptr;
    }
    return ptx;
}

// The newest PTX that a driver takes: the table of release notes in the PTX reference.
unsigned newest_ptx(uint64_t driver) {
    constexpr struct { uint64_t driver; unsigned ptx; } TABLE[] = {
        {13010, 91}, {13000, 90}, {12090, 88}, {12080, 87}, {12070, 86}, {12050, 85}, {12040, 84},
        {12030, 83}, {12020, 82}, {12010, 81}, {12000, 80}, {11080, 78}, {11070, 77}, {11060, 76},
    };
    for (const auto &row : TABLE) {
        if (driver >= row.driver) return row.ptx;
    }
    return 75;
}

bool runs_on(const Ptx &ptx, uint64_t capability) {
    if (ptx.variant == 'a') return ptx.target == capability;
    if (ptx.variant == 'f') return ptx.target / 10 == capability / 10 && ptx.target <= capability;
    return ptx.target <= capability;
}

}  // namespace

API cuModuleLoadData(Handle *out, const void *image) {
    return Call("cuModuleLoadData").in_context([&](Driver &d, Handle context, Context &) -> Result {
        if (out == nullptr || image == nullptr) return INVALID_VALUE;
        // A cubin or a fat binary: what this driver cannot run.
        auto first = *static_cast<const unsigned char *>(image);
        if (first == 0x7F || first >= 0x80) return INVALID_IMAGE;
        Ptx ptx = parse(static_cast<const char *>(image));
        if (ptx.version == 0 || ptx.target == 0) return INVALID_PTX;
        if (ptx.version > newest_ptx(d.settings.driver_version)) return UNSUPPORTED_PTX_VERSION;
        if (!runs_on(ptx, d.settings.compute_capability)) return NO_BINARY_FOR_GPU;
        *out = d.new_handle();
        d.modules[*out] = {context, std::move(ptx.entries)};
        return SUCCESS;
    });
}

API cuModuleUnload(Handle module) {
    return Call("cuModuleUnload").giving_back([&](Driver &d, Handle, Context &) -> Result {
        if (d.modules.erase(module) == 0) return INVALID_HANDLE;
        std::erase_if(d.functions, [=](const auto &function) { return function.second.module == module; });
        return SUCCESS;
    });
}

API cuModuleGetFunction(Handle *out, Handle module, const char *name) {
    return Call("cuModuleGetFunction").in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto found = d.modules.find(module);
        if (found == d.modules.end()) return INVALID_HANDLE;
        if (out == nullptr || name == nullptr) return INVALID_VALUE;
        auto entry = found->second.entries.find(name);
        if (entry == found->second.entries.end()) return NOT_FOUND;
        const kv_host_kernel *kernel = kv_host_find(name);
        if (kernel == nullptr) {
            d.trace.violation(std::string(name) + " is in the PTX, but the host compiler has not seen it");
            return NOT_FOUND;
        }
        if (entry->second.argument_bytes != kernel->arg_bytes) {
            d.trace.violation(std::string(name) + " has another argument in the PTX than for the host compiler");
        }
        *out = d.new_handle();
        d.functions[*out] = {context, module, kernel, entry->second.most_threads};
        return SUCCESS;
    });
}

API cuFuncSetAttribute(Handle function, int attribute, int value) {
    return Call("cuFuncSetAttribute").in_context([&](Driver &d, Handle, Context &) -> Result {
        auto found = d.functions.find(function);
        if (found == d.functions.end()) return INVALID_HANDLE;
        if (attribute == 9) return SUCCESS;  // PREFERRED_SHARED_MEMORY_CARVEOUT: a hint
        // MAX_DYNAMIC_SHARED_SIZE_BYTES
        if (attribute != 8 || value < 0 || value > 227 * 1024) return INVALID_VALUE;
        found->second.dynamic_shared = value;
        return SUCCESS;
    });
}

API cuFuncGetAttribute(int *value, int attribute, Handle function) {
    return Call("cuFuncGetAttribute").in_context([&](Driver &d, Handle, Context &) -> Result {
        auto found = d.functions.find(function);
        if (found == d.functions.end()) return INVALID_HANDLE;
        switch (attribute) {
            // MAX_THREADS_PER_BLOCK
            case 0: *value = static_cast<int>(found->second.most_threads); break;
            case 1: case 2: case 3: *value = 0; break;            // SHARED, CONST, LOCAL_SIZE_BYTES
            case 4: *value = 32; break;                           // NUM_REGS
            case 8: *value = found->second.dynamic_shared; break; // MAX_DYNAMIC_SHARED_SIZE_BYTES
            default: return INVALID_VALUE;
        }
        return SUCCESS;
    });
}

API cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, Handle handle, void **params, void **extra) {
    return Call("cuLaunchKernel", handle).in_context([&](Driver &d, Handle context, Context &) -> Result {
        auto found = d.functions.find(function);
        auto stream = d.stream(handle, context);
        if (found == d.functions.end() || stream == nullptr) return INVALID_HANDLE;
        if (params == nullptr || extra != nullptr || grid_x == 0 || block_x == 0) return INVALID_VALUE;
        // The host compiler's kernels have one dimension.
        if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1) return NOT_SUPPORTED;
        const Function &f = found->second;
        if (block_x > f.most_threads) return INVALID_VALUE;
        if (shared_bytes > static_cast<unsigned>(f.dynamic_shared)) return INVALID_VALUE;
        Op op{.kind = Op::Kind::Kernel, .name = f.kernel->name, .kernel = f.kernel};
        auto *bytes = static_cast<const unsigned char *>(params[0]);
        op.argument.assign(bytes, bytes + f.kernel->arg_bytes);
        op.grid = grid_x;
        op.block = block_x;
        op.shared_bytes = shared_bytes;
        d.scheduler.submit(stream, std::move(op));
        return SUCCESS;
    });
}

// What memory the driver knows of, and what a device may touch.
//
// Device memory is a file without a name that is mapped twice: at device addresses, which are inaccessible
// except while a kernel runs, so that a host that follows a device pointer is caught as it is by a GPU; and
// elsewhere for the copies, which this driver carries out itself. A device address is never used again, and
// between any two allocations lies a page that is nobody's. Nor is an address of pinned memory.
#pragma once

#include <map>
#include <vector>

#include "abi.h"

namespace fake {

enum class Kind { Device, Imported, Pinned, Registered };

struct Range {
    Kind kind;
    Address start;
    size_t bytes;
    // Where the driver itself finds the bytes.
    unsigned char *store;
    Handle context;
    int device;
    // Of an import: the allocation behind it, and how often it was opened.
    Address exported = 0;
    unsigned opens = 0;

    bool on_device() const { return kind == Kind::Device || kind == Kind::Imported; }
    bool contains(Address address, size_t n) const {
        return address >= start && n <= bytes && address - start <= bytes - n;
    }
};

class Memory {
public:
    // The new memory holds poison. Null if the machine has no more.
    Range *allocate_device(size_t bytes, Handle context, int device);
    Range *allocate_pinned(size_t bytes, Handle context, int device);
    // Null if any of it is registered or pinned already.
    Range *register_host(Address start, size_t bytes, Handle context, int device);
    // The same bytes at another device address.
    Range *import(const Range &exported, Handle context);
    void release(Address start);
    void release_all();

    // The range that starts there, or that has all of these bytes; null if there is none.
    Range *starting_at(Address start);
    Range *find(Address address, size_t bytes);
    bool touches(Address address, size_t bytes) const;
    // Whether it could only be a device address, allocated or not.
    bool is_device_address(Address address) const;
    size_t device_bytes(int device) const;
    std::vector<Address> imports_of(Address exported) const;
    const std::map<Address, Range> &ranges() const { return ranges_; }

    // Lets kernels reach device memory, or stops them.
    void open_device_memory(bool open);

private:
    bool reserve();
    // Addresses for `bytes` and a page besides; null if all are used up.
    static unsigned char *next(unsigned char *region, size_t &used, size_t bytes);
    Range *add(const Range &range);

    std::map<Address, Range> ranges_;
    int file_ = -1;
    unsigned char *store_ = nullptr;   // the bytes of the device
    unsigned char *device_ = nullptr;  // their addresses
    unsigned char *pinned_ = nullptr;
    size_t device_used_ = 0, pinned_used_ = 0;
};

}  // namespace fake

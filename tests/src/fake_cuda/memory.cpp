#include "memory.h"

#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>

#include <cstring>

#include "guard.h"

namespace fake {
namespace {

constexpr unsigned char POISON = 0xA5;
// Addresses are never used twice: so much can be allocated in the life of a process.
constexpr size_t RESERVED = size_t{1} << 38;
constexpr size_t PAGE = 4096;
// What cuMemAlloc promises.
constexpr size_t ALIGNMENT = 256;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

unsigned char *map(void *at, size_t bytes, int protection, int flags, int file, size_t offset) {
    void *p = mmap(at, bytes, protection, flags, file, static_cast<off_t>(offset));
    return p == MAP_FAILED ? nullptr : static_cast<unsigned char *>(p);
}

}  // namespace

bool Memory::reserve() {
    if (pinned_ != nullptr) return true;
    file_ = memfd_create("fake device memory", MFD_CLOEXEC);
    if (file_ < 0 || ftruncate(file_, RESERVED) != 0) return false;
    store_ = map(nullptr, RESERVED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
    if (store_ == nullptr) return false;
    constexpr int NOBODYS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    device_ = map(nullptr, RESERVED, PROT_NONE, NOBODYS, -1, 0);
    pinned_ = map(nullptr, RESERVED, PROT_NONE, NOBODYS, -1, 0);
    if (device_ == nullptr || pinned_ == nullptr) return false;
    guard_reserved(device_, RESERVED);
    guard_reserved(pinned_, RESERVED);
    return true;
}

unsigned char *Memory::next(unsigned char *region, size_t &used, size_t bytes) {
    if (bytes > RESERVED || RESERVED - bytes < PAGE || used > RESERVED - PAGE - bytes) return nullptr;
    unsigned char *at = region + used;
    used += bytes + PAGE;
    return at;
}

Range *Memory::add(const Range &range) { return &ranges_.insert_or_assign(range.start, range).first->second; }

Range *Memory::allocate_device(size_t bytes, Handle context, int device) {
    size_t pages = round_up(bytes, PAGE);
    unsigned char *at = reserve() ? next(device_, device_used_, pages) : nullptr;
    if (at == nullptr) return nullptr;
    auto offset = static_cast<size_t>(at - device_);
    if (map(at, pages, PROT_NONE, MAP_SHARED | MAP_FIXED, file_, offset) == nullptr) return nullptr;
    // The end touches the guard page, so that a kernel cannot run over it unseen.
    size_t start = offset + pages - round_up(bytes, ALIGNMENT);
    std::memset(store_ + start, POISON, bytes);
    return add({Kind::Device, reinterpret_cast<Address>(device_ + start), bytes, store_ + start, context, device});
}

Range *Memory::import(const Range &exported, Handle context) {
    auto from = static_cast<size_t>(exported.store - store_);
    size_t first = from / PAGE * PAGE;
    size_t pages = round_up(from + exported.bytes, PAGE) - first;
    unsigned char *at = next(device_, device_used_, pages);
    if (at == nullptr || map(at, pages, PROT_NONE, MAP_SHARED | MAP_FIXED, file_, first) == nullptr) return nullptr;
    auto address = reinterpret_cast<Address>(at) + (from - first);
    return add({Kind::Imported, address, exported.bytes, exported.store, context, exported.device, exported.start, 1});
}

Range *Memory::allocate_pinned(size_t bytes, Handle context, int device) {
    size_t pages = round_up(bytes, PAGE);
    unsigned char *at = reserve() ? next(pinned_, pinned_used_, pages) : nullptr;
    if (at == nullptr) return nullptr;
    if (map(at, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == nullptr) return nullptr;
    std::memset(at, POISON, bytes);
    return add({Kind::Pinned, reinterpret_cast<Address>(at), bytes, at, context, device});
}

Range *Memory::register_host(Address start, size_t bytes, Handle context, int device) {
    if (touches(start, bytes)) return nullptr;
    return add({Kind::Registered, start, bytes, reinterpret_cast<unsigned char *>(start), context, device});
}

void Memory::release(Address start) {
    auto found = ranges_.find(start);
    if (found == ranges_.end()) return;
    const Range &range = found->second;
    Address first = start / PAGE * PAGE;
    size_t pages = round_up(start + range.bytes, PAGE) - first;
    void *at = reinterpret_cast<void *>(first);
    // Freed addresses become nobody's and stay so.
    if (range.kind != Kind::Registered) {
        map(at, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    if (range.kind == Kind::Device) {
        auto offset = static_cast<off_t>(first - reinterpret_cast<Address>(device_));
        fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(pages));
    }
    ranges_.erase(found);
}

void Memory::release_all() {
    while (!ranges_.empty()) release(ranges_.begin()->first);
}

Range *Memory::starting_at(Address start) {
    auto found = ranges_.find(start);
    return found == ranges_.end() ? nullptr : &found->second;
}

Range *Memory::find(Address address, size_t bytes) {
    auto after = ranges_.upper_bound(address);
    if (after == ranges_.begin()) return nullptr;
    Range &range = std::prev(after)->second;
    return range.contains(address, bytes) ? &range : nullptr;
}

bool Memory::touches(Address address, size_t bytes) const {
    auto after = ranges_.lower_bound(address);
    if (after != ranges_.end() && after->first - address < bytes) return true;
    if (after == ranges_.begin()) return false;
    const Range &before = std::prev(after)->second;
    return address - before.start < before.bytes;
}

bool Memory::is_device_address(Address address) const {
    auto base = reinterpret_cast<Address>(device_);
    return device_ != nullptr && address >= base && address - base < RESERVED;
}

size_t Memory::device_bytes(int device) const {
    size_t total = 0;
    for (const auto &[start, range] : ranges_) {
        if (range.kind == Kind::Device && range.device == device) total += range.bytes;
    }
    return total;
}

std::vector<Address> Memory::imports_of(Address exported) const {
    std::vector<Address> found;
    for (const auto &[start, range] : ranges_) {
        if (range.kind == Kind::Imported && range.exported == exported) found.push_back(start);
    }
    return found;
}

void Memory::open_device_memory(bool open) {
    for (const auto &[start, range] : ranges_) {
        if (!range.on_device()) continue;
        Address first = start / PAGE * PAGE;
        mprotect(reinterpret_cast<void *>(first), round_up(start + range.bytes, PAGE) - first,
                 open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

}  // namespace fake

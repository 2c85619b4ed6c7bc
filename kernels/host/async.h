/*
 * A model of mbarriers and bulk asynchronous copies (the functions of bulk.cuh) that is as late and as
 * unkind as the hardware may be:
 *
 *   bulk load    destroys its destination when it is issued; reads its source and lands when the thread
 *                waits for the mbarrier's phase, and not before.
 *   bulk store   reads its source when its group is waited for. If the bytes are not what they were when it was
 *                issued, the hardware could have read either: what is written is neither.
 *   CTA's end    a store whose group was not waited for reads memory that is gone: nothing is written. A load that
 *                nobody waited for ends the process.
 *
 * So a missing wait, a wrong phase parity or a slot that is reused early gives wrong bytes.
 */
#pragma once

#include <map>


namespace kv_shim {

struct BulkLoad {
    unsigned char *to;
    const unsigned char *from;
    uint32_t bytes;
};

/* State of the mbarrier at an address. */
struct Barrier {
    uint32_t count = 0;     /* arrivals of a phase */
    uint32_t arrived = 0;
    int64_t expected = 0;   /* bytes announced and not landed; negative if landed before */
    uint32_t phase = 0;     /* phases completed */
    std::vector<BulkLoad> loads;
};

struct BulkStore {
    unsigned char *to;
    const unsigned char *from;
    std::vector<unsigned char> issued; /* what `from` held then */
    bool read = false;
};

/* Bulk groups of one thread. */
struct Groups {
    std::vector<BulkStore> open;                   /* not committed */
    std::vector<std::vector<BulkStore>> committed; /* oldest first, those waited for removed */
    std::vector<BulkStore> reading_done;           /* read, not known to be written */
};

struct Async {
    std::map<const void *, Barrier> barriers;
    std::vector<Groups> groups;
};

inline Async &async()
{
    static Async value;
    return value;
}

inline Groups &my_groups() { return async().groups[launch().thread_index.x]; }

inline Barrier &barrier_at(const void *address)
{
    const auto found = async().barriers.find(address);
    if (found == async().barriers.end()) {
        fail("an mbarrier that was not initialised is used");
    }
    return found->second;
}

inline void check_bulk(const void *shared, uint64_t global, uint32_t bytes)
{
    const unsigned char *at = static_cast<const unsigned char *>(shared);
    const unsigned char *first = launch().dynamic_shared;
    if (bytes == 0 || bytes % 16 != 0 || global % 16 != 0 || reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        fail("bulk copy of %u bytes, global address 0x%llx, not in units of 16 bytes", bytes,
             static_cast<unsigned long long>(global));
    }
    if (at < first || at + bytes > first + launch().dynamic_shared_bytes) {
        fail("bulk copy outside dynamic shared memory");
    }
}

inline void finish_read(BulkStore &store)
{
    if (store.read) {
        return;
    }
    for (size_t i = 0; i < store.issued.size(); ++i) {
        if (store.from[i] != store.issued[i]) {
            store.issued[i] = static_cast<unsigned char>(store.from[i] + store.issued[i] + 1);
        }
    }
    store.read = true;
}

inline void finish_write(const BulkStore &store) { memcpy(store.to, store.issued.data(), store.issued.size()); }

inline void start_async(uint32_t threads)
{
    async().barriers.clear();
    async().groups.assign(threads, Groups());
}

inline void end_async()
{
    for (const auto &entry : async().barriers) {
        if (!entry.second.loads.empty()) {
            fail("a bulk load is in flight when its CTA ends");
        }
    }
    for (const Groups &groups : async().groups) {
        for (const BulkStore &store : groups.reading_done) {
            finish_write(store);
        }
    }
}

/* Completes the phase if nothing is missing. */
inline void advance(Barrier &barrier)
{
    if (barrier.arrived == barrier.count && barrier.expected == 0) {
        barrier.arrived = 0;
        ++barrier.phase;
        launch().progress = true;
    }
}

} // namespace kv_shim

static inline void kv_barrier_init(uint64_t *barrier)
{
    kv_shim::Barrier fresh;
    fresh.count = 1;
    kv_shim::async().barriers[barrier] = fresh;
}

static inline void kv_barrier_init_done() {}

static inline void kv_barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    kv_shim::Barrier &state = kv_shim::barrier_at(barrier);
    if (++state.arrived > state.count) {
        kv_shim::fail("more arrivals at an mbarrier than it counts");
    }
    state.expected += bytes;
    kv_shim::advance(state);
}

static inline void kv_bulk_load(void *to, uint64_t from, uint32_t bytes, uint64_t *barrier)
{
    kv_shim::check_bulk(to, from, bytes);
    memset(to, KV_SHIM_POISON ^ 0xFF, bytes);
    kv_shim::barrier_at(barrier).loads.push_back(
        {static_cast<unsigned char *>(to), reinterpret_cast<const unsigned char *>(from), bytes});
}

static inline void kv_barrier_wait(uint64_t *barrier, uint32_t parity)
{
    kv_shim::Barrier &state = kv_shim::barrier_at(barrier);
    while ((state.phase & 1) == parity) {
        for (const kv_shim::BulkLoad &load : state.loads) {
            memcpy(load.to, load.from, load.bytes);
            state.expected -= load.bytes;
        }
        state.loads.clear();
        kv_shim::advance(state);
        if ((state.phase & 1) == parity) {
            kv_shim::wait(kv_shim::State::polling, KV_SHIM_HERE);
        }
    }
}

static inline void kv_bulk_store(uint64_t to, const void *from, uint32_t bytes)
{
    kv_shim::check_bulk(from, to, bytes);
    const unsigned char *source = static_cast<const unsigned char *>(from);
    kv_shim::my_groups().open.push_back(
        {reinterpret_cast<unsigned char *>(to), source, std::vector<unsigned char>(source, source + bytes)});
}

static inline void kv_bulk_commit()
{
    kv_shim::Groups &groups = kv_shim::my_groups();
    groups.committed.push_back(std::move(groups.open));
    groups.open.clear();
}

/* All groups but the last PENDING have read their sources. */
template <uint32_t PENDING>
static inline void kv_bulk_wait_read()
{
    kv_shim::Groups &groups = kv_shim::my_groups();
    while (groups.committed.size() > PENDING) {
        for (kv_shim::BulkStore &store : groups.committed.front()) {
            kv_shim::finish_read(store);
            groups.reading_done.push_back(std::move(store));
        }
        groups.committed.erase(groups.committed.begin());
    }
}

/* All groups have been written. */
static inline void kv_bulk_wait_all()
{
    kv_bulk_wait_read<0>();
    kv_shim::Groups &groups = kv_shim::my_groups();
    for (const kv_shim::BulkStore &store : groups.reading_done) {
        kv_shim::finish_write(store);
    }
    groups.reading_done.clear();
}

static inline uint32_t kv_dynamic_shared_bytes() { return kv_shim::launch().dynamic_shared_bytes; }

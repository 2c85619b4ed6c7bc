/*
 * kv_copy_bulk: the work of kv_copy for 16-byte vectors, by bulk copies through shared memory (sm_90). The copy unit
 * of the SM moves the bytes; one warp only says which. It needs few registers and a ring of the launcher's size, so
 * it fits beside a kernel that computes.
 *
 * A CTA is one warp. A run, or a piece of one that is longer than a slot, goes through one slot of the ring:
 *
 *                  ┌─ kv_slot, one for each slot: mbarrier, destination, bytes
 *   dynamic shared [s0 s1 ... ][ slot 0 │ slot 1 │ ... ]      slots of lane l: l * depth ... l * depth + depth - 1
 *
 *   round k of a lane:   wait for the load of round k     ┐ slot k mod depth
 *                        store it                         ┘
 *                        wait until the store of round k - 1 has read its slot
 *                        load round k - 1 + depth          into the slot of round k - 1
 *
 * So depth - 1 of `depth` slots hold loads in flight. How the ring is cut: a slot is as long as a run, but at most a
 * quarter of the ring (longer runs are cut into equal pieces); there are as many slots as then fit; each
 * lane gets at least KV_DEPTH of them, so small runs use many lanes, long ones few. A ring below KV_RING_LEAST traps.
 *
 * The thread that waits for a load is the one that stores it, and both go by the async proxy: no fence between.
 */
#include "bulk.cuh"
#include "walk.cuh"

/* Least number of slots that a lane goes around. */
constexpr uint32_t KV_DEPTH = 4;
constexpr uint32_t KV_LANES = 32;
/* Blocks whose kv_block are fetched at once. */
constexpr uint32_t KV_BULK_TILE = 256;
constexpr uint32_t KV_VECTOR = 16;

struct kv_slot {
    uint64_t barrier;
    uint64_t dst;
    uint32_t bytes;
    uint32_t reserved[3];
};
static_assert(sizeof(kv_slot) % KV_VECTOR == 0, "the ring behind the slots is aligned");

constexpr uint32_t KV_RING_LEAST = KV_DEPTH * (sizeof(kv_slot) + KV_VECTOR);

/* How the ring is cut. */
struct kv_ring {
    uint32_t slot_vectors;
    uint32_t pieces; /* of a run */
    uint32_t lanes;  /* that copy */
    uint32_t depth;  /* slots of each */
};

__device__ __forceinline__ kv_ring kv_cut(uint32_t ring_bytes, uint32_t run_vectors)
{
    kv_ring ring;
    const uint32_t longest = (ring_bytes / KV_DEPTH - sizeof(kv_slot)) / KV_VECTOR;
    ring.pieces = (run_vectors - 1) / longest + 1;
    ring.slot_vectors = (run_vectors - 1) / ring.pieces + 1;
    const uint32_t slots = ring_bytes / (sizeof(kv_slot) + ring.slot_vectors * KV_VECTOR);
    ring.lanes = slots / KV_DEPTH < KV_LANES ? slots / KV_DEPTH : KV_LANES;
    ring.depth = slots / ring.lanes;
    return ring;
}

/* One lane of the copy. Every lane calls every function. */
struct kv_pump {
    const kv_copy_args &args;
    const kv_ring ring;
    const kv_share share; /* pieces of this CTA */
    const uint32_t lane;
    kv_slot *slots;       /* of this lane */
    unsigned char *data;  /* of this lane: ring.depth slots */
    kv_block *tile;
    uint32_t tile_first;
    uint32_t tile_end;

    __device__ __forceinline__ uint32_t block_of(uint32_t piece) const
    {
        return kv_divide(piece / ring.pieces * args.nest.run.divisor, args.nest.block).quotient;
    }

    /* Piece of this lane in a round; share.end or more if it has none. */
    __device__ __forceinline__ uint32_t piece_of(uint32_t round) const
    {
        return lane < ring.lanes ? share.begin + round * ring.lanes + lane : share.end;
    }

    __device__ __forceinline__ unsigned char *slot_data(uint32_t slot) const
    {
        return data + slot * ring.slot_vectors * KV_VECTOR;
    }

    /* Starts the load of a round, if it has one, into a slot that nobody uses. */
    __device__ __forceinline__ void load(uint32_t round, uint32_t slot)
    {
        const uint32_t first = share.begin + round * ring.lanes; /* of all lanes */
        if (first >= share.end) {
            return;
        }
        const uint32_t last = (first + ring.lanes < share.end ? first + ring.lanes : share.end) - 1;
        if (block_of(last) >= tile_end) { /* the same way for all lanes */
            tile_first = block_of(first);
            const uint32_t left = args.num_blocks - tile_first;
            tile_end = tile_first + (left < KV_BULK_TILE ? left : KV_BULK_TILE);
            __syncwarp(); /* nobody reads the last tile any more */
            kv_fetch_blocks(tile, args.blocks, tile_first, tile_end - tile_first, lane, KV_LANES);
            __syncwarp();
        }
        const uint32_t piece = piece_of(round);
        if (piece < share.end) {
            const uint32_t run = piece / ring.pieces;
            const uint32_t start = (piece - run * ring.pieces) * ring.slot_vectors;
            const uint32_t left = args.nest.run.divisor - start;
            const uint32_t vectors = left < ring.slot_vectors ? left : ring.slot_vectors;
            const kv_position at = kv_locate<0>(args.nest, run * args.nest.run.divisor + start);
            const kv_block block = tile[at.block - tile_first];
            kv_slot &into = slots[slot];
            into.dst = kv_address<0>(args.dst, args.nest, at, block.dst);
            into.bytes = vectors * KV_VECTOR;
            kv_barrier_arrive_expect(&into.barrier, into.bytes);
            kv_bulk_load(slot_data(slot), kv_address<0>(args.src, args.nest, at, block.src), into.bytes, &into.barrier);
        }
    }

    /* Waits for the load of a round, if it has one, and starts its store. */
    __device__ __forceinline__ void store(uint32_t round, uint32_t slot, uint32_t parity)
    {
        const bool mine = piece_of(round) < share.end;
        kv_slot &from = slots[slot];
        if (mine) {
            kv_barrier_wait(&from.barrier, parity);
        }
        __syncwarp(); /* together again: the hardware counts the groups of a warp, not of a thread */
        if (mine) {
            kv_bulk_store(from.dst, slot_data(slot), from.bytes);
        }
        kv_bulk_commit();
    }
};

extern "C" __global__ void __launch_bounds__(32) kv_copy_bulk(const __grid_constant__ kv_copy_args args)
{
    __shared__ kv_block tile[KV_BULK_TILE];
    KV_DYNAMIC_SHARED(shared);
    const uint32_t ring_bytes = kv_dynamic_shared_bytes();
    if (ring_bytes < KV_RING_LEAST || args.nest.vector_bytes != KV_VECTOR || blockDim.x != KV_LANES) {
        __trap();
    }
    const kv_ring ring = kv_cut(ring_bytes, args.nest.run.divisor);
    const uint32_t runs = args.num_blocks * (args.nest.block.divisor / args.nest.run.divisor);
    const uint32_t lane = threadIdx.x;
    const uint32_t first_slot = lane < ring.lanes ? lane * ring.depth : 0;
    kv_slot *slots = reinterpret_cast<kv_slot *>(shared);
    unsigned char *data = shared + ring.lanes * ring.depth * sizeof(kv_slot);
    kv_pump pump = {args,
                    ring,
                    kv_share_of(runs * ring.pieces, 1),
                    lane,
                    slots + first_slot,
                    data + first_slot * ring.slot_vectors * KV_VECTOR,
                    tile,
                    0,
                    0};
    if (lane < ring.lanes) {
        for (uint32_t slot = 0; slot < ring.depth; ++slot) {
            kv_barrier_init(&pump.slots[slot].barrier);
        }
        kv_barrier_init_done();
    }
    __syncwarp();

    for (uint32_t round = 0; round < ring.depth - 1; ++round) {
        pump.load(round, round);
    }
    const uint32_t rounds = (pump.share.end - pump.share.begin + ring.lanes - 1) / ring.lanes;
    uint32_t slot = 0; /* of the round */
    uint32_t parity = 0;
    for (uint32_t round = 0; round < rounds; ++round) {
        pump.store(round, slot, parity);
        kv_bulk_wait_read<1>();
        pump.load(round + ring.depth - 1, slot == 0 ? ring.depth - 1 : slot - 1);
        if (++slot == ring.depth) {
            slot = 0;
            parity ^= 1;
        }
    }
    /* The slots are gone with the CTA, and the destination may be host memory. */
    kv_bulk_wait_all();
    __threadfence_system();
}

"""Copies of other projects between GPU and pinned host memory, in the figures of `kvtier gpu bench`.

Every peer copies the same bytes: a pool of `layers` buffers, one fragment in each for each block, blocks in a
random order. The limit is one contiguous copy in the same round. What a peer has copied is compared, so that
one that fails in silence has no figure. Prints one JSON object: figures, and who was skipped and why.
"""

import argparse
import json
import random
import statistics
import sys
import time

BLOCK = 2 << 20


def sample(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Scene:
    """A pool in GPU memory and page-first blocks in pinned memory."""

    def __init__(self, torch, device, total, fragment):
        block = max(BLOCK, fragment)
        self.torch, self.device, self.fragment = torch, device, fragment
        self.blocks, self.layers = max(total // block, 2), block // fragment
        shape = (self.layers, self.blocks, fragment)
        self.pool = torch.empty(shape, dtype=torch.uint8, device=device)
        # Page-first: all layers of a block in one run.
        self.host = torch.empty((self.blocks, self.layers, fragment), dtype=torch.uint8).pin_memory()
        self.filled = torch.randint(0, 256, shape, dtype=torch.uint8)
        order = list(range(self.blocks))
        random.Random(fragment).shuffle(order)
        # Block `at` of the host is block order[at] of the pool.
        self.order = torch.tensor(order, dtype=torch.int64)
        self.order_on_gpu = self.order.to(device)
        self.bytes = self.pool.numel()

    def addresses(self):
        """Address of every fragment in the pool and in host memory, block by block."""
        step = self.fragment
        layers = self.torch.arange(self.layers, dtype=self.torch.int64)
        in_pool = self.pool.data_ptr() + (layers[None, :] * self.blocks + self.order[:, None]) * step
        blocks = self.torch.arange(self.blocks, dtype=self.torch.int64)
        in_host = self.host.data_ptr() + (blocks[:, None] * self.layers + layers[None, :]) * step
        return in_pool.reshape(-1).contiguous(), in_host.reshape(-1).contiguous()

    def prepare(self, way):
        if way == "h2d":
            self.host.copy_(self.filled[:, self.order].transpose(0, 1))
            self.pool.zero_()
        else:
            self.pool.copy_(self.filled)
            self.host.zero_()
        self.torch.cuda.synchronize(self.device)

    def is_right(self, way):
        found = self.pool.cpu() if way == "h2d" else self.host
        expected = self.filled if way == "h2d" else self.filled[:, self.order].transpose(0, 1)
        return bool(self.torch.equal(found, expected.contiguous()))


# Each peer: a function of a scene and a way that returns a function which queues or makes the copy.


def contiguous(scene, way):
    pool, host = scene.pool.view(-1), scene.host.view(-1)
    to, source = (pool, host) if way == "h2d" else (host, pool)
    return lambda: to.copy_(source, non_blocking=True)


def torch_index(scene, way):
    """index_select or index_copy_ through a contiguous tensor on the GPU, and one copy."""
    staged = scene.torch.empty_like(scene.host, device=scene.device)

    def store():
        staged.copy_(scene.pool.index_select(1, scene.order_on_gpu).transpose(0, 1))
        scene.host.copy_(staged, non_blocking=True)

    def load():
        staged.copy_(scene.host, non_blocking=True)
        scene.pool.index_copy_(1, scene.order_on_gpu, staged.transpose(0, 1).contiguous())

    return load if way == "h2d" else store


def torch_loop(scene, way):
    """copy_(non_blocking=True) of every fragment."""
    order = scene.order.tolist()
    pairs = []
    for at, block in enumerate(order):
        for layer in range(scene.layers):
            pool, host = scene.pool[layer, block], scene.host[at, layer]
            pairs.append((pool, host) if way == "h2d" else (host, pool))

    def run():
        for to, source in pairs:
            to.copy_(source, non_blocking=True)

    return run


def vllm_swap_blocks(scene, way):
    """One call for each layer; its blocks are a host tensor of their own."""
    from vllm import _custom_ops as ops

    host = [scene.host[:, layer].contiguous().pin_memory() for layer in range(scene.layers)]
    pairs = scene.torch.stack([scene.torch.arange(scene.blocks), scene.order], 1)
    if way == "d2h":
        pairs = pairs.flip(1)
    pairs = pairs.contiguous()

    def run():
        for layer, of_host in enumerate(host):
            to, source = (scene.pool[layer], of_host) if way == "h2d" else (of_host, scene.pool[layer])
            try:
                ops.swap_blocks(source, to, scene.fragment, pairs)
            except TypeError:
                ops.swap_blocks(source, to, pairs)

    def settle():
        for layer, of_host in enumerate(host):
            scene.host[:, layer].copy_(of_host)

    def refresh():
        for layer, of_host in enumerate(host):
            of_host.copy_(scene.host[:, layer])

    run.settle, run.refresh = settle, refresh
    return run


def vllm_swap_blocks_batch(scene, way):
    from vllm import _custom_ops as ops

    in_pool, in_host = scene.addresses()
    sizes = scene.torch.full_like(in_pool, scene.fragment)
    source, to = (in_host, in_pool) if way == "h2d" else (in_pool, in_host)
    stream = scene.torch.cuda.Stream(scene.device)

    def run():
        # The driver refuses batches in the default stream.
        with scene.torch.cuda.stream(stream):
            ops.swap_blocks_batch(source, to, sizes)

    return run


def sglang_kernel(scene, way):
    """One call for each layer; an MLA pool, as its elements are not split into K and V."""
    try:
        from sgl_kernel.kvcacheio import transfer_kv_per_layer_mla
    except ImportError:
        from sglang.kernels.ops.kvcache.kvcacheio import transfer_kv_per_layer_mla

    host = [scene.host[:, layer].contiguous().pin_memory() for layer in range(scene.layers)]
    at = scene.torch.arange(scene.blocks, dtype=scene.torch.int64, device=scene.device)

    def run():
        for layer, of_host in enumerate(host):
            if way == "h2d":
                transfer_kv_per_layer_mla(of_host, scene.pool[layer], at, scene.order_on_gpu, scene.fragment)
            else:
                transfer_kv_per_layer_mla(scene.pool[layer], of_host, scene.order_on_gpu, at, scene.fragment)

    def settle():
        for layer, of_host in enumerate(host):
            scene.host[:, layer].copy_(of_host)

    def refresh():
        for layer, of_host in enumerate(host):
            of_host.copy_(scene.host[:, layer])

    run.settle, run.refresh = settle, refresh
    return run


def lmcache_kernel(scene, way):
    """Layers of one latent vector a token (MLA), to and from LMCache's [1, layers, tokens, vector]."""
    import lmcache.c_ops as ops

    torch = scene.torch
    # The kernel moves elements of the tensor's type.
    wide = torch.bfloat16
    pointers = torch.tensor([scene.pool[layer].data_ptr() for layer in range(scene.layers)],
                            dtype=torch.int64).to(scene.device)
    chunk = torch.empty((1, scene.layers, scene.blocks, scene.fragment // 2), dtype=wide).pin_memory()
    formats = getattr(ops, "EngineKVFormat", None) or getattr(ops, "GPUKVFormat")
    direction = ops.TransferDirection.H2D if way == "h2d" else ops.TransferDirection.D2H

    def run():
        ops.multi_layer_kv_transfer(chunk, pointers, scene.order_on_gpu, scene.device, scene.blocks, direction,
                                    formats.NL_X_NB_BS_HS, 1)

    as_bytes = chunk.view(torch.uint8)[0]

    def settle():
        scene.host.copy_(as_bytes.transpose(0, 1))

    def refresh():
        as_bytes.copy_(scene.host.transpose(0, 1))

    run.settle, run.refresh = settle, refresh
    return run


def kvbm_kernel(scene, way):
    """One pair of addresses for each fragment, through the C function of the installed library."""
    import ctypes.util
    import glob
    import importlib.util
    import os

    paths = [ctypes.util.find_library("kvbm_kernels")]
    for package in ("kvbm", "dynamo", "kvbm_kernels"):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            paths += glob.glob(os.path.join(folder, "**", "libkvbm_kernels*.so"), recursive=True)
    paths = [path for path in paths if path]
    if not paths:
        raise ImportError("libkvbm_kernels.so is not installed")
    library = ctypes.CDLL(paths[0])
    launch = library.kvbm_kernels_launch_vectorized_copy
    launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    in_pool, in_host = scene.addresses()
    source, to = (in_host, in_pool) if way == "h2d" else (in_pool, in_host)
    source, to = source.to(scene.device), to.to(scene.device)
    stream = scene.torch.cuda.current_stream(scene.device).cuda_stream

    def run():
        status = launch(source.data_ptr(), to.data_ptr(), scene.fragment, source.numel(), stream)
        if status != 0:
            raise RuntimeError(f"CUDA error {status}")

    return run


PEERS = {
    "torch index_select + copy_": torch_index,
    "torch copy_ of each fragment": torch_loop,
    "vLLM swap_blocks": vllm_swap_blocks,
    "vLLM swap_blocks_batch": vllm_swap_blocks_batch,
    "SGLang transfer_kv_per_layer_mla": sglang_kernel,
    "LMCache multi_layer_kv_transfer": lmcache_kernel,
    "kvbm vectorized_copy": kvbm_kernel,
}


def timed(scene, run):
    scene.torch.cuda.synchronize(scene.device)
    start = time.perf_counter()
    run()
    scene.torch.cuda.synchronize(scene.device)
    return time.perf_counter() - start


def checked(scene, way, make):
    """The peer, seen to copy the right bytes once."""
    scene.prepare(way)
    run = make(scene, way)
    getattr(run, "refresh", lambda: None)()
    timed(scene, run)
    if way == "d2h":
        getattr(run, "settle", lambda: None)()
    if not scene.is_right(way):
        raise RuntimeError("it did not copy the right bytes")
    return run


def measure(torch, device, args, skipped):
    figures = []
    for fragment in (int(size) for size in args.fragments.split(",")):
        scene = Scene(torch, device, args.bytes, fragment)
        for way in ("h2d", "d2h"):
            runs = {"contiguous, torch": contiguous(scene, way)}
            for name, make in PEERS.items():
                try:
                    runs[name] = checked(scene, way, make)
                except Exception as error:  # whatever a peer does must not end the others
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    # Not installed is said once; what goes wrong, each time.
                    if not isinstance(error, ImportError):
                        why = f"{way}, fragments of {fragment}: {why}"
                    if {"peer": name, "why": why} not in skipped:
                        skipped.append({"peer": name, "why": why})
            rates = {name: [] for name in runs}
            names = list(runs)
            for turn in range(args.rounds + 1):
                at = turn % len(names)
                for name in names[at:] + names[:at]:
                    seconds = timed(scene, runs[name])
                    if turn > 0:
                        rates[name].append(scene.bytes / 1e9 / seconds)
            limit = rates[names[0]]
            for name, values in rates.items():
                shares = [value / most for value, most in zip(values, limit)]
                figures.append({
                    "work": way, "fragment": fragment, "contender": name, "ctas": 0, "unit": "GB/s",
                    "value": sample(values), "share": sample(shares),
                })
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bytes", type=int, default=256 << 20)
    parser.add_argument("--fragments", default="4096,65536,2097152")
    args = parser.parse_args()
    figures, skipped = [], []
    try:
        import torch

        if not torch.cuda.is_available():
            raise ImportError("torch has no CUDA here")
        torch.cuda.set_device(args.device)
        with torch.no_grad():
            figures = measure(torch, torch.device("cuda", args.device), args, skipped)
    except ImportError as error:
        skipped.append({"peer": "all peers", "why": str(error)})
    except Exception as error:
        skipped.append({"peer": "all peers", "why": f"{type(error).__name__}: {error}".splitlines()[0]})
    json.dump({"figures": figures, "skipped": skipped}, sys.stdout)
    print()


if __name__ == "__main__":
    main()

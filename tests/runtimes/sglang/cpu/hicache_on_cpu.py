"""Lets HiCache run on CPU tensors: its copies between device and host pools exist for GPUs only.

A plugin of SGLang's (entry point `sglang.srt.plugins`). Copies become indexed assignments, and host memory is
neither pinned nor kept in reserve.
"""

import torch


def at(layout, layer, slots, page_size):
    """The index of the rows of `slots` of one layer, in a host buffer of that layout."""
    page, row = slots // page_size, slots % page_size
    match layout:
        case "layer_first":
            return layer, slots
        case "page_first":
            return slots, layer
        case "page_first_direct":
            return page, layer, row
        case "page_head":
            return page, slice(None), row, layer
    raise NotImplementedError(f"layout {layout!r}")


def _planes_mha(host):
    """Pairs of a host buffer and the device's tensors, one for each layer of it."""
    return (host.k_buffer, host.device_k_buffers), (host.v_buffer, host.device_v_buffers)


def _planes_mla(host):
    return ((host.kv_buffer, host.device_kv_buffers),)


def _patch(pool, planes):
    def backup(self, device_pool, host_indices, device_indices, io_backend):
        for buffer, layers in planes(self):
            for layer, tensor in enumerate(layers):
                buffer[at(self.layout, layer, host_indices.long(), self.page_size)] = tensor[device_indices.long()]

    def load(self, device_pool, host_indices, device_indices, layer_id, io_backend, *, is_draft=False):
        if not 0 <= layer_id < self.target_layer_num:
            return
        for buffer, layers in planes(self):
            rows = buffer[at(self.layout, layer_id, host_indices.long(), self.page_size)]
            layers[layer_id][device_indices.long()] = rows

    pool.backup_from_device_all_layer = backup
    pool.load_to_device_per_layer = load


def register():
    # First: SGLang's modules import each other in a circle.
    import sglang.srt.managers.cache_controller  # noqa: F401
    from sglang.srt.mem_cache.pool_host import base
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
    from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

    if torch.cuda.is_available():
        return
    # It leaves 10 GiB of the machine's memory free, which small ones do not have.
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 1 << 28
    make = base.HostKVCache.__init__

    def unpinned(self, **kwargs):
        make(self, **{**kwargs, "pin_memory": False})

    base.HostKVCache.__init__ = unpinned
    _patch(MHATokenToKVPoolHost, _planes_mha)
    _patch(MLATokenToKVPoolHost, _planes_mla)

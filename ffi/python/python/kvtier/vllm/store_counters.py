"""The counters of `Store.stats` that both the connector and the tier show."""

STORE_COUNTERS = {
    "nvme_reads": "Blocks read from NVMe.",
    "nvme_writes": "Blocks written to NVMe.",
    "failed_loads": "Blocks that could not be read, or were not what was stored.",
    "failed_writes": "Blocks that could not be written.",
    "lost_to_eviction": "Blocks pushed out of host memory that no other tier had.",
    "remote_reads": "Blocks read from remote stores.",
    "remote_writes": "Blocks written to remote stores.",
    "loads_admitted": "Times that loading from a slow source was chosen over recomputing.",
    "loads_refused": "Times that recomputing was chosen.",
}

"""Which KV is meant: all that decides its bytes and that vLLM's block hashes (tokens, salt, adapter, images) do not."""

import hashlib
from pathlib import Path

from kvtier.options import describe
from kvtier.vllm._compat import MINOR, ModelConfig, OffloadingConfig, VllmConfig, current_platform

_FILES = ("config.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def weights(vllm_config: VllmConfig) -> str:
    """Names the weights: the commit of a hub's repository, or a digest of samples of local files.

    It tells checkpoints apart that have the same name. Weights that are replaced while vLLM runs have to be announced
    by `reset_prefix_cache(reset_connector=True)`, as for vLLM's own cache.
    """
    model = vllm_config.model_config
    commit = getattr(model.hf_config, "_commit_hash", None)
    path = Path(model.model)
    local = digest(path) if commit is None and path.is_dir() else None
    load_format = vllm_config.load_config.load_format
    made_up = model.seed if "dummy" in str(load_format) else None
    return describe(revision=commit or model.revision, digest=local, seed=made_up)


def digest(directory: Path) -> str:
    """Of a local checkpoint. Any training moves nearly all numbers, so that samples of a few of them find it."""
    hashed = hashlib.blake2b(digest_size=16)
    files = sorted({file for pattern in _FILES for file in directory.glob(pattern)})
    for file in files:
        size = file.stat().st_size
        hashed.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for sample in range(_SAMPLES):
                opened.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                hashed.update(opened.read(_SAMPLE_BYTES))
    return hashed.hexdigest()


def _config_digest(model_config: ModelConfig) -> str:
    """Of the model's own configuration: rope, heads, windows, overrides."""
    return hashlib.blake2b(model_config.hf_config.to_json_string().encode(), digest_size=16).hexdigest()


def namespace(vllm_config: VllmConfig) -> dict[str, object]:
    """All of it but what only a worker knows."""
    cache, model = vllm_config.cache_config, vllm_config.model_config
    return {
        "runtime": f"vllm-{MINOR}",
        "hash": cache.prefix_caching_hash_algo,
        "weights": weights(vllm_config),
        "model_config": _config_digest(model),
        "weight_dtype": model.dtype,
        "quantization": model.quantization,
        "platform": current_platform.device_type,
        "backends": _backends(vllm_config),
    }


def _backends(vllm_config: VllmConfig) -> str:
    """Attention backends, which decide how a page is filled. Layers are known in workers alone."""
    layers = vllm_config.compilation_config.static_forward_context.values()
    names = {layer.attn_backend.get_name() for layer in layers if hasattr(layer, "attn_backend")}
    return "+".join(sorted(names))


def layout(config: OffloadingConfig, **more: object) -> str:
    """The layout's text for one store of this rank."""
    return describe(
        kv_dtype=config.model.dtype,
        kv_layout=config.kv_cache_layout,
        tokens_per_hash=config.cache.tokens_per_hash,
        rank=config.parallel.rank,
        **ranks(config),
        **more,
    )


def ranks(config: OffloadingConfig) -> dict[str, object]:
    """Into how many parts, and which, the KV cache is divided."""
    parallel = config.parallel
    return {
        "ranks": parallel.world_size,
        "tp": parallel.tp_size,
        "pp": parallel.pp_size,
        "pcp": parallel.pcp_size,
        "dcp": parallel.dcp_size,
    }

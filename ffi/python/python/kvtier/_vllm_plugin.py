"""Tells vLLM the short names of kvtier. Its processes call `register` by the entry point `vllm.general_plugins`."""


def register() -> None:
    """`"type": "kvtier"` is a tier of vLLM's tiering. Nothing is imported until it is asked for."""
    try:
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
    except ImportError:
        return  # Of another version: a configuration that names kvtier will say what is missing.
    if "kvtier" not in SecondaryTierFactory._registry:
        SecondaryTierFactory.register_tier("kvtier", "kvtier.vllm.tier", "KvtierTier")

"""Random weights of a small Llama whose answers depend on all of the prompt.

Those that SGLang makes up itself (`--load-format dummy`) are so small that attention hardly changes an answer: a wrong
page would not be noticed.
"""

import json
import math
import sys
import zlib
from pathlib import Path

from safetensors.torch import save_file

import torch

_CONFIG = Path(__file__).parent / "models" / "llama" / "config.json"
_SHARP = 2.0
"""How much larger queries and keys are than what they are made of: it makes attention choose."""


def llama(seed: int) -> Path:
    """The directory of the checkpoint of that number, made when it is first asked for, beside the environment."""
    config = _CONFIG.read_text()
    name = f"llama-{seed}-{zlib.crc32((config + Path(__file__).read_text()).encode()):08x}"
    directory = Path(sys.prefix) / "models" / name
    if not directory.exists():
        part = directory.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        (part / "config.json").write_text(config)
        save_file(_tensors(json.loads(config), seed), part / "model.safetensors", metadata={"format": "pt"})
        part.rename(directory)
    return directory


def _tensors(config: dict, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))).bfloat16()

    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    ones = torch.ones(hidden).bfloat16()
    tensors = {
        "model.embed_tokens.weight": matrix(vocabulary, hidden, math.sqrt(hidden)),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": matrix(vocabulary, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        weights = {
            "self_attn.q_proj": matrix(queries, hidden, _SHARP),
            "self_attn.k_proj": matrix(keys, hidden, _SHARP),
            "self_attn.v_proj": matrix(keys, hidden),
            "self_attn.o_proj": matrix(hidden, queries),
            "mlp.gate_proj": matrix(inner, hidden),
            "mlp.up_proj": matrix(inner, hidden),
            "mlp.down_proj": matrix(hidden, inner),
            "input_layernorm": ones.clone(),
            "post_attention_layernorm": ones.clone(),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in weights.items()}
    return tensors

"""Small models with random weights, one for each shape of KV cache. Nothing is downloaded.

The weights are large enough that greedy tokens depend on the KV of the whole prompt: a wrong block is another text.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

VOCABULARY = 1024
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """An architecture, and what of it decides the KV cache."""

    config: type[transformers.PretrainedConfig]
    model: type[transformers.PreTrainedModel]
    shape: dict[str, object]
    tokens_per_block: int
    """What vLLM's attention on a CPU can do for it."""
    scale: float
    """Standard deviation of the weights."""


FAMILIES = {
    # 8 heads share 2 of keys and values.
    "gqa": Family(
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
        tokens_per_block=32,
        scale=0.12,
    ),
    # One latent of 512 + 64 for all heads, the only size that vLLM's kernel for CPUs is built for.
    "mla": Family(
        transformers.DeepseekV2Config,
        transformers.DeepseekV2ForCausalLM,
        {
            "num_hidden_layers": 3,
            "first_k_dense_replace": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "head_dim": 64,
            "n_routed_experts": 2,
            "num_experts_per_tok": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 128,
        },
        tokens_per_block=16,
        scale=0.12,
    ),
    # Layers that see 64 tokens and layers that see all: two groups of KV cache.
    "window": Family(
        transformers.Gemma3TextConfig,
        transformers.Gemma3ForCausalLM,
        {
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 32,
        },
        tokens_per_block=32,
        scale=0.12,
    ),
}


def make_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a model into a folder: configuration, weights and a tokenizer. Another seed, other weights."""
    made = FAMILIES[family]
    torch.manual_seed(seed)
    config = made.config(**{**_COMMON, **made.shape}, initializer_range=made.scale, torch_dtype="float32")
    made.model(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte: prompts are given as tokens, but vLLM wants a tokenizer."""
    alphabet = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def prompt(tokens: int, *, of: int) -> list[int]:
    """One of many prompts, the same in every process, that share no first token."""
    return [(7 * place + 13 * of + place * place // 11) % (VOCABULARY - 8) + 4 for place in range(tokens)]

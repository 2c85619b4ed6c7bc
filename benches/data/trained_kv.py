"""Makes trained_kv.bf16: keys and values of a small transformer that was trained on text, for `kvtier bench codec`.

    pip install jax && python3 trained_kv.py TEXT_FOLDER [STEPS]

A byte-level decoder as Llama's (RMSNorm, rotary positions, grouped queries, SwiGLU; Touvron et al., 2023), trained in
float32 by AdamW on every .py, .md, .rst and .txt below the folder. It is small (4 layers of 256, 2 key/value heads of
64), so its outlier channels are milder than those of a large model; what it shows is KV that training has shaped.

The file is one cache after a prompt that was not trained on: for each layer K and then V, each [token][head][dim] in
little-endian bfloat16, keys with their positions applied, as runtimes cache them.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, DIM, HIDDEN = 4, 256, 4, 2, 64, 704
CONTEXT, BATCH, RATE, SEED = 128, 8, 2e-3, 1


def text(folder):
    kinds = {".py", ".md", ".rst", ".txt"}
    paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix in kinds and p.is_file())
    data = b"".join(p.read_bytes() for p in paths)[: 32 << 20]
    return np.frombuffer(data, np.uint8)


def weights(key):
    def matrix(rows, columns):
        nonlocal key
        key, use = jax.random.split(key)
        return jax.random.normal(use, (rows, columns)) * rows**-0.5

    def layer():
        return {
            "q": matrix(WIDTH, HEADS * DIM), "k": matrix(WIDTH, KV_HEADS * DIM), "v": matrix(WIDTH, KV_HEADS * DIM),
            "o": matrix(HEADS * DIM, WIDTH), "gate": matrix(WIDTH, HIDDEN), "up": matrix(WIDTH, HIDDEN),
            "down": matrix(HIDDEN, WIDTH), "norm1": jnp.ones(WIDTH), "norm2": jnp.ones(WIDTH),
        }

    return {"in": matrix(256, WIDTH), "out": matrix(WIDTH, 256), "norm": jnp.ones(WIDTH),
            "layers": [layer() for _ in range(LAYERS)]}


def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale


def rotate(x):
    """Rotary positions (Su et al., 2021), halves apart as in Llama."""
    angle = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(DIM // 2) / (DIM // 2))
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def forward(w, tokens):
    x, cache = w["in"][tokens], []
    batch, length = tokens.shape
    mask = jnp.tril(jnp.ones((length, length), bool))
    for layer in w["layers"]:
        y = norm(x, layer["norm1"])
        q = rotate((y @ layer["q"]).reshape(batch, length, HEADS, DIM))
        k = rotate((y @ layer["k"]).reshape(batch, length, KV_HEADS, DIM))
        v = (y @ layer["v"]).reshape(batch, length, KV_HEADS, DIM)
        cache += [k, v]
        k, v = (jnp.repeat(t, HEADS // KV_HEADS, 2) for t in (k, v))
        scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k) * DIM**-0.5, -1e30)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(batch, length, -1) @ layer["o"]
        y = norm(x, layer["norm2"])
        x = x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
    return norm(x, w["norm"]) @ w["out"], cache


def loss(w, tokens):
    logits, _ = forward(w, tokens[:, :-1])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))


@jax.jit
def step(w, m, v, tokens, i, rate):
    value, grad = jax.value_and_grad(loss)(w, tokens)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grad)
    v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, grad)

    def update(w, m, v):
        m, v = m / (1 - 0.9**i), v / (1 - 0.95**i)
        return w - rate * (m / (jnp.sqrt(v) + 1e-8) + 0.1 * w)

    return jax.tree.map(update, w, m, v), m, v, value


def main():
    data = text(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    rng = np.random.default_rng(SEED)
    w = weights(jax.random.key(SEED))
    m = v = jax.tree.map(jnp.zeros_like, w)
    start = time.time()
    for i in range(1, steps + 1):
        at = rng.integers(0, len(train) - CONTEXT - 1, BATCH)
        tokens = jnp.asarray(np.stack([train[a : a + CONTEXT + 1] for a in at]).astype(np.int32))
        rate = RATE * min(i / 100, 1.0) * (1 - 0.9 * i / steps)
        w, m, v, value = step(w, m, v, tokens, float(i), rate)
        if i % 100 == 0:
            print(f"{i} of {steps}: loss {float(value):.3f}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
            save(w, held_out)


def save(w, held_out):
    """The cache of a prompt that was not trained on."""
    prompt = jnp.asarray(held_out[None, 5000 : 5000 + CONTEXT].astype(np.int32))
    _, cache = forward(w, prompt)
    out = pathlib.Path(__file__).with_name("trained_kv.bf16")
    out.write_bytes(b"".join(np.asarray(t[0].astype(jnp.bfloat16)).view(np.uint16).astype("<u2").tobytes() for t in cache))
    print(f"held-out loss {float(loss(w, jnp.asarray(held_out[None, 5000:5129].astype(np.int32)))):.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()

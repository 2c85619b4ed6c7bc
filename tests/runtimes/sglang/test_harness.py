"""The harness itself, with the file backend that SGLang brings: what fails here is not kvtier's."""

import time
from pathlib import Path

from server import PAGE, Server, prompt


def test_a_prompt_comes_back_from_every_place_with_the_same_tokens(detached: Server, tmp_path: Path) -> None:
    server = detached
    server.attach({"file_storage_path": str(tmp_path), "prefetch_threshold": PAGE}, backend="file")
    tokens = prompt(1, 700)
    whole = 640

    cold = server.generate(tokens)
    assert cold.cached == 0
    warm = server.generate(tokens)
    assert (warm.tokens, warm.device) == (cold.tokens, whole)
    while len(list(tmp_path.iterdir())) < whole // PAGE:
        time.sleep(0.01)
    server.flush()
    stored = server.generate(tokens)
    assert (stored.tokens, stored.device, stored.storage) == (cold.tokens, 0, whole)
    server.evict(1)
    evicted = server.generate(tokens)
    assert (evicted.tokens, evicted.device, evicted.host) == (cold.tokens, 0, whole)


def test_an_answer_depends_on_every_page(detached: Server) -> None:
    tokens = prompt(2, 700)
    answer = detached.generate(tokens).tokens
    for page in range(0, 10, 3):
        changed = tokens[: page * PAGE] + prompt(3, PAGE) + tokens[(page + 1) * PAGE :]
        assert detached.generate(changed).tokens != answer

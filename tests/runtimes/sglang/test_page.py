"""The lines of `docs/sglang.md` and `docs/sglang-linker.md`, in real servers."""

from pathlib import Path

import pytest
from server import Server, prompt
from weights import llama

from page import line_of


def flags_of(page: str, host: str, directory: Path) -> dict[str, object]:
    """The flags of a page's line. Sizes are those of a small machine."""
    replaced = {"MODEL": str(llama(1)), "/mnt/nvme/kv": str(directory), host: "64MiB", "1TiB": "256MiB"}
    words = line_of(page, "python -m sglang.launch_server", replaced)
    flags: dict[str, object] = {}
    for word in words[3:]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            flags[name] = True
        else:
            flags[name] = word
    return flags


@pytest.mark.parametrize(
    ("page", "host", "place", "more"),
    [
        # Without the policy, SGLang may give a fetch up when a request's turn comes on a busy machine.
        ("sglang.md", "8GiB", "storage", {"hicache-storage-prefetch-policy": "wait_complete"}),
        ("sglang-linker.md", "64GiB", "host", {}),
    ],
)
def test_the_line_of_the_page_works_as_written(
    page: str, host: str, place: str, more: dict[str, object], tmp_path: Path
) -> None:
    tokens = prompt(1, 700)
    with Server(tmp_path / "log", flags_of(page, host, tmp_path / "kv") | more) as server:
        cold = server.generate(tokens)
        assert cold.cached == 0
        if place == "storage":
            server.until("sglang:backuped_tokens_total", 640)
        server.flush()
        again = server.generate(tokens)
        assert again.tokens == cold.tokens
        assert (again.cached, getattr(again, place)) == (640, 640)

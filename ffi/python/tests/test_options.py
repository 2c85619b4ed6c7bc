import doctest
from pathlib import Path

import kvtier.options
import pytest
from kvtier import Invalid
from kvtier.options import StoreOptions, describe, parse_bytes


def test_its_examples_are_true():
    assert doctest.testmod(kvtier.options).attempted > 0
    assert doctest.testmod(kvtier.options).failed == 0


@pytest.mark.parametrize("value", ["", "GiB", "-1", -1, 1.5, True, None, "8 Gi B", "1e9"])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(Invalid, match="is no size"):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs the option 'host'"),
        ({"host": 1, "hots": 2}, "do you mean 'host'"),
        ({"host": 1, "zzzzzz": 2}, "there are host, path"),
        ({"host": "much"}, "'host': 'much' is no size"),
        ({"host": 1, "path": "relative", "nvme": 1}, "relative"),
        ({"host": 1, "path": "/x"}, "come together"),
        ({"host": 1, "nvme": 1}, "come together"),
        ({"host": 1, "keep_at_exit": True}, "need 'path'"),
        ({"host": 1, "keep_at_exit": "yes"}, "neither true nor false"),
        ({"host": 1, "remotes": "redis://x"}, "no list"),
        ({"host": 1, "timeout": 0}, "no number of seconds"),
    ],
)
def test_what_is_wrong_is_named(given, says):
    with pytest.raises(Invalid, match=says):
        StoreOptions.parse(given)


def test_parts_are_apart_and_survive_a_restart(tmp_path: Path):
    options = StoreOptions.parse(
        {"host": "4MiB", "path": str(tmp_path / "kv"), "nvme": "64MiB", "keep_at_exit": True, "revision": "1"}
    )
    key, page = b"k" * 16, bytearray(b"p" * 4096)

    def open_part(part: str) -> kvtier.Store:
        return options.open(part=part, share=0.5, block_bytes=4096, model="m", layout=describe(part=part))

    with open_part("rank0") as zero, open_part("rank1") as one:
        assert zero.put([key], page).wait().done == 1
        assert list(zero.exists([key]) + one.exists([key])) == [1, 0]
    with open_part("rank0") as zero, open_part("rank1") as one:
        assert list(zero.exists([key]) + one.exists([key])) == [2, 0]

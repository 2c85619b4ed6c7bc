"""The lines of the pages in `docs/`, as a user would copy them."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def line_of(page: str, program: str, replaced: Mapping[str, str]) -> list[str]:
    """The words of the first command of a page that starts with `program`, with texts replaced that are the reader's.

    Each of them has to be there: a page that was changed is looked at again.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", (_DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    found = [block for block in blocks if block.startswith(program)]
    assert found, f"{page} has no line that starts with {program!r}"
    line = found[0].replace("\\\n", " ")
    for theirs, ours in replaced.items():
        assert theirs in line, f"{page} says nothing of {theirs!r}: {line}"
        line = line.replace(theirs, ours)
    return shlex.split(line)

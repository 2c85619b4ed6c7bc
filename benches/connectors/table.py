"""What the rounds add up to, as JSON and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = "fio"
NOTES = Path(__file__).with_name("notes.md")
"""What was expected and what was found, for whoever reads the tables."""

Row = tuple[str, Callable[[dict[str, Any], float], float | None], bool, int]


def rate(what: str) -> Callable[[dict[str, Any], float], float | None]:
    """GB/s of an operation."""
    return lambda round, gb: gb / round[what]["seconds"] if what in round else None


def processor(what: str) -> Callable[[dict[str, Any], float], float | None]:
    """Processor seconds per GB of an operation."""
    return lambda round, gb: round[what]["processor"] / gb if what in round else None


def asked(what: str) -> Callable[[dict[str, Any], float], float | None]:
    """Microseconds per key."""

    def of(round: dict[str, Any], _: float) -> float | None:
        seconds = round.get("exists", {}).get(what)
        return None if seconds is None else seconds * 1e6

    return of


def pause(during: str, what: str) -> Callable[[dict[str, Any], float], float | None]:
    """Milliseconds that a piece of work of 10 us took a busy thread."""
    return lambda round, _: round["pauses"][during][what] if "pauses" in round else None


def share(during: str) -> Callable[[dict[str, Any], float], float | None]:
    """Of what a busy thread gets done alone, in percent."""

    def of(round: dict[str, Any], _: float) -> float | None:
        pauses = round.get("pauses")
        return 100 * pauses[during]["pieces_per_s"] / pauses["idle"]["pieces_per_s"] if pauses else None

    return of


ROWS: list[Row] = [
    ("write until durable, GB/s", rate("durable"), True, 2),
    ("write until it says done, GB/s", rate("write"), True, 2),
    ("cold read, GB/s", rate("cold"), True, 2),
    ("warm read, GB/s", rate("warm"), True, 2),
    ("exists, there, us/key", asked("hit_s"), False, 2),
    ("exists, not there, us/key", asked("miss_s"), False, 2),
    ("write until durable, CPU s/GB", processor("durable"), False, 3),
    ("cold read, CPU s/GB", processor("cold"), False, 3),
    ("warm read, CPU s/GB", processor("warm"), False, 3),
    ("write: busy thread's p99, ms", pause("write", "p99_ms"), False, 2),
    ("write: busy thread's longest, ms", pause("write", "max_ms"), False, 1),
    ("write: busy thread gets done, %", share("write"), True, 0),
    ("cold read: busy thread's p99, ms", pause("cold", "p99_ms"), False, 2),
    ("cold read: busy thread's longest, ms", pause("cold", "max_ms"), False, 1),
    ("cold read: busy thread gets done, %", share("cold"), True, 0),
]
"""Title, figure of a round, whether more is better, digits."""


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most of each cell."""
    cells: dict[tuple[int, str, str], list[float]] = {}
    for one in rounds:
        gb = one["size"] * one["blocks"] / 1e9
        for title, figure, _, _ in ROWS:
            value = figure(one, gb)
            if value is not None:
                cells.setdefault((one["size"], title, one["contender"]), []).append(value)
    return [
        {
            "block_bytes": size,
            "figure": title,
            "contender": contender,
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "rounds": len(values),
        }
        for (size, title, contender), values in cells.items()
    ]


def markdown(result: dict[str, Any]) -> str:
    """The page in `benches/results`."""
    cells = {(c["block_bytes"], c["figure"], c["contender"]): c for c in result["cells"]}
    names = [LIMIT, *result["contenders"]]
    counts = sorted({cell["rounds"] for cell in result["cells"]})
    rounds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        "# Connectors side by side",
        "",
        f"{result['processor']}, {result['processors']} processors, load {result['load_before']:.2f} before and "
        f"{result['load_after']:.2f} after (the run itself is part of it), Linux {result['kernel']}, kvtier "
        f"{result['commit']}, Python {result['python']}.",
        "",
        f"{rounds} rounds of {result['mib']} MiB for each block size, contenders in a new random order in "
        "each round, each in a process and an environment of its own, all with the same bytes on the same disk. Median "
        "(least..most). Bold: the best of the contenders, fio apart. CPU is user and system time of all threads of the "
        "process: writing back what only the page cache holds is not in it. The busy thread counts in the same "
        "process, in pieces of about 10 us; what it gets done is compared with what it gets done while nothing else "
        "happens.",
        "",
        "| contender | what it promises when a write is done | what it checks of a read | what makes a read cold |",
        "|---|---|---|---|",
    ]
    for name, about in result["contenders"].items():
        lines.append(f"| {name} | {about['promise']} | {about['checks']} | {about['cold']} |")
    lines += [
        "",
        "*Until durable*: until it would survive a power loss. kvtier's flush syncs its log; for the others each file, "
        "and the folders, are synced after the write, as none of them does it.",
    ]
    for size in result["sizes"]:
        present = [name for name in names if any(c[0] == size and c[2] == name for c in cells)]
        lines += ["", f"## Blocks of {size / (1 << 20):g} MiB", "", "| | " + " | ".join(present) + " |"]
        lines.append("|---|" + "---:|" * len(present))
        for title, _, more, digits in ROWS:
            found = {name: cells.get((size, title, name)) for name in present}
            medians = [round(c["median"], digits) for name, c in found.items() if c and name != LIMIT]
            best = (max if more else min)(medians, default=None)
            row = []
            for name, cell in found.items():
                if cell is None:
                    row.append("")
                    continue
                median, least, most = (f"{cell[of]:.{digits}f}" for of in ("median", "least", "most"))
                bold = "**" if name != LIMIT and round(cell["median"], digits) == best else ""
                row.append(f"{bold}{median}{bold} ({least}..{most})")
            lines.append(f"| {title} | " + " | ".join(row) + " |")
    for name, why in result["left_out"].items():
        lines += ["", f"{name} was left out: {why.splitlines()[-1]}"]
    return "\n".join([*lines, "", NOTES.read_text()])

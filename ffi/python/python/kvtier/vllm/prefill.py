"""How long prefill takes: what the choice between loading and recomputing learns from."""

import time
from collections import OrderedDict
from collections.abc import Mapping

from kvtier.vllm._compat import RequestOffloadState, SchedulerOutput

_MOST_STEPS = 16
"""Steps that may be under way; of more, the oldest has no output."""


class PrefillClock:
    """Times the steps of the scheduler that compute prompts.

    A step ends when its output is there. Steps overlap when vLLM schedules ahead, so a step begins when the one before
    has ended, at the earliest.
    """

    def __init__(self) -> None:
        self._steps: OrderedDict[int, tuple[float, list[tuple[int, int]]]] = OrderedDict()
        self._number = 0
        self._last_end = 0.0

    def begin(self, output: SchedulerOutput, states: Mapping[str, RequestOffloadState]) -> int | None:
        """A step is scheduled. Returns its number if it computes prompts."""
        passes = []
        for request, tokens in output.num_scheduled_tokens.items():
            state = states.get(request)
            if state is None:
                continue
            start = state.req.num_computed_tokens
            end = min(start + tokens, state.req.num_prompt_tokens)
            if end > start:
                passes.append((start, end))
        if not passes:
            return None
        self._number += 1
        self._steps[self._number] = (time.monotonic(), passes)
        if len(self._steps) > _MOST_STEPS:
            self._steps.popitem(last=False)
        return self._number

    def end(self, number: int | None) -> list[tuple[int, int, float]]:
        """A step's output is there. Returns its passes: first token, end, seconds, by their number of tokens."""
        now = time.monotonic()
        began, passes = self._steps.pop(number, (now, [])) if number is not None else (now, [])
        seconds = now - max(began, self._last_end)
        self._last_end = now
        tokens = sum(end - start for start, end in passes)
        return [(start, end, seconds * (end - start) / tokens) for start, end in passes]

"""What goes wrong with every block is said now and then."""

import time

from kvtier.vllm._compat import init_logger

logger = init_logger(__name__)

_SILENCE = 10.0
_MOST_TEXTS = 100
_said: dict[str, float] = {}


def now_and_then(text: str) -> None:
    """Logs each text at most every ten seconds."""
    now = time.monotonic()
    if now - _said.get(text, -_SILENCE) >= _SILENCE:
        if len(_said) >= _MOST_TEXTS:
            _said.clear()
        _said[text] = now
        logger.warning("%s", text)

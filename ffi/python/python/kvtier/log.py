"""kvtier's log in Python's `logging`, under the logger `kvtier`.

kvtier's threads never take the interpreter; a thread of Python collects what they say.
"""

import atexit
import logging
import threading

from kvtier._kvtier import log_level, next_logs, stop_logs

_lock = threading.Lock()
_thread: threading.Thread | None = None


def enable(level: int = logging.WARNING) -> None:
    """Passes messages from `level` on to `logging.getLogger("kvtier")` and its children.

    Can be called again with another level. `RuntimeError` when the process has another collector of Rust's log.
    """
    global _thread
    with _lock:
        if not log_level(level):
            raise RuntimeError("this process has another collector of Rust's log, which gets kvtier's messages")
        if _thread is None:
            _thread = threading.Thread(target=_collect, name="kvtier-log", daemon=True)
            _thread.start()
            atexit.register(disable)


def disable() -> None:
    """Ends it, after what is waiting was passed on."""
    global _thread
    with _lock:
        if _thread is None:
            return
        stop_logs()
        _thread.join()
        _thread = None
        atexit.unregister(disable)


def _collect() -> None:
    while (lines := next_logs(3600.0)) is not None:
        for level, module, text in lines:
            # `kv_tiers::nvme` is `kvtier.kv_tiers.nvme`.
            name = ".".join(["kvtier", *module.split("::")])
            logging.getLogger(name).log(level, "%s", text)

"""Ends of processes, forks, the log, the command, the documentation."""

import doctest
import inspect
import logging
import subprocess
import sys
import textwrap

import kvtier
import kvtier.log
from conftest import BLOCK, MIB


def python(code, *arguments):
    """Runs a program; `ok` says that it got to its end."""
    head = "import kvtier, os, sys, threading\n"
    command = [sys.executable, "-X", "faulthandler", "-c", head + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout.strip(), done.stderr


SLOW = """
    import ctypes
    def slow():
        store, size, times = kvtier.Store(1 << 20, 1 << 26), 1 << 20, 1 << 20
        store.put(bytes(16), bytes(size)).wait()
        target = bytearray(size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(target))
        return store, store.get(bytes(16 * times), kvtier.Runs([start] * times, size, keep=target), timeout=3600)
"""


def test_the_interpreter_exits_with_work_under_way():
    code = """
    store, slow_get = slow()
    threading.Thread(target=slow_get.wait, daemon=True).start()
    pages = [bytearray(1 << 20) for _ in range(64)]
    tickets = [store.get([bytes(16)], page, timeout=3600) for page in pages]
    del tickets, pages
    print("ok")
    """
    assert python(textwrap.dedent(SLOW) + textwrap.dedent(code)) == (0, "ok", "")


def test_a_thread_that_is_not_a_daemon_is_waited_for_as_usual():
    code = """
    store, slow_get = slow()
    thread = threading.Thread(target=slow_get.wait)
    thread.start()
    slow_get.cancel()
    print("ok")
    """
    assert python(textwrap.dedent(SLOW) + textwrap.dedent(code)) == (0, "ok", "")


def test_a_forked_process_gets_exceptions_and_can_exit():
    code = """
    import kvtier.log, warnings
    warnings.simplefilter("ignore")
    store, slow_get = slow()
    queue, runs, keys = kvtier.Queue(), kvtier.Runs([1], 1), store.keys([b"k"])
    buffer = bytearray(1 << 20)
    get = store.get([bytes(16)], buffer)
    child = os.fork()
    if child == 0:
        def refused(call):
            try:
                call()
            except kvtier.Forked:
                return True
        calls = [lambda: store.exists([b"k"]), lambda: store.put([b"k"], buffer), slow_get.poll, slow_get.wait]
        calls += [get.poll, slow_get.cancel, slow_get.release, queue.drain, queue.fileno, store.close, store.stats]
        good = all([refused(call) for call in calls])
        del get, slow_get, store, queue
        good = good and refused(lambda: kvtier.Store(8192, 1 << 22)) and refused(kvtier.log.enable)
        # The usual end, with everything that is run at exit.
        sys.exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert get.wait().done == 1 and store.exists(bytes(16)) == bytes([1])
    store.close()
    print("ok")
    """
    assert python(textwrap.dedent(SLOW) + textwrap.dedent(code)) == (0, "ok", "")


def test_a_process_that_was_forked_before_any_store_opens_its_own():
    code = """
    queue = kvtier.Queue()
    child = os.fork()
    with kvtier.Store(8192, 1 << 22) as store:
        assert store.put([b"k"], bytes(8192)).wait().done == 1
        # Once there are threads, nobody forks further.
        if child and (grandchild := os.fork()) == 0:
            try:
                kvtier.Store(8192, 1 << 22)
            except kvtier.Forked:
                os._exit(0)
            os._exit(1)
    if child:
        for process in (child, grandchild):
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        print("ok")
    """
    head = "import warnings; warnings.simplefilter('ignore')"
    assert python(head + textwrap.dedent(code)) == (0, "ok", "")


def test_a_spawned_process_opens_its_own():
    code = """
    import multiprocessing
    def work(n):
        with kvtier.Store(8192, 1 << 22) as store:
            return store.put([b"k"], bytes(8192)).wait().done + n
    if __name__ == "__main__":
        print(work(1))
    """
    assert python(code) == (0, "2", "")


def test_the_log_reaches_logging(tmp_path, caplog):
    def opened():
        with kvtier.Store(BLOCK, MIB, path=tmp_path, nvme_bytes=64 * MIB):
            pass

    caplog.set_level(logging.DEBUG, "kvtier")
    kvtier.log.enable(logging.INFO)
    opened()
    # What was said before is passed on first.
    kvtier.log.disable()
    assert any(
        r.name.startswith("kvtier.kv_tiers.nvme") and r.levelno == logging.INFO and str(tmp_path) in r.message
        for r in caplog.records
    ), caplog.records
    caplog.clear()
    opened()
    kvtier.log.enable(logging.ERROR)
    opened()
    kvtier.log.disable()
    assert not caplog.records


def test_the_command_is_in_the_wheel():
    from pathlib import Path

    command = Path(sys.executable).with_name("kvtier")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.split() == ["kvtier", kvtier.__version__]
    wrong = subprocess.run([command, "nonsense"], capture_output=True, check=False)
    assert wrong.returncode == 2


def test_the_benchmark_runs(tmp_path):
    import json

    command = [sys.executable, "-m", "kvtier.bench", "--dir", tmp_path, "--mib", "16", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    result = json.loads(done.stdout)
    assert [c["blocks"] for c in result["copies"]] == [32, 8, 2]
    assert set(result["jitter"]) == {"idle", "kvtier_get", "files_get"}


def test_the_examples_in_the_documentation_run():
    finder, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    documented = [(kvtier.__name__, kvtier)] + [(name, getattr(kvtier, name)) for name in kvtier.__all__]
    with_examples = 0
    for name, thing in documented:
        text = inspect.getdoc(thing) or ""
        if not isinstance(thing, str):
            assert text, f"{name} has no documentation"
        test = finder.get_doctest(text, {}, name, None, None)
        with_examples += bool(test.examples)
        runner.run(test)
    assert runner.summarize().failed == 0
    assert with_examples >= 8

"""What all tests of vLLM share. vLLM reads its environment when it is imported: it is set first."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_LOGGING_LEVEL="WARNING",
    # Scheduler and worker in this process, so that tests can reach them, and no sockets.
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    # Threads that wait for each other by spinning make a busy machine many times slower.
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
)

from collections.abc import Callable
from pathlib import Path

import pytest

from models import make_model


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the model of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def model(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return model

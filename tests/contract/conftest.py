"""On which device the contract is held: ``pytest tests/contract --device cuda``."""

from __future__ import annotations

import pytest
import torch

from ostinato.errors import InputError
from ostinato.training.precision import resolve_device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where methods compute: auto, cpu or cuda:N (default: cpu)")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    # Where the whole suite runs, this file is read after the command line, and there is no such option.
    name = request.config.getoption("--device", default="cpu")
    try:
        return resolve_device(name)
    except InputError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

"""What every test shares: a quiet, repeatable machine."""

import os
import sys
from typing import NoReturn

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator; the global one stays untouched."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed goes into a pipe whose reader has left."""

    def write(text: str) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr(sys.stdout, "write", write)

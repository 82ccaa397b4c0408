"""What every test shares: a quiet, repeatable machine."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator; the global one stays untouched."""
    return torch.Generator().manual_seed(0)

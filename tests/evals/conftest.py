"""The small hosts' module by name (test packages here have no __init__.py), one thread, and a few rows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def gaussian():
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.normal(size=(1000, 5)).astype(np.float32)) * torch.tensor([1, 2, 3, 4, 5.0]) + 2

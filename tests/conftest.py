import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _same_networks():
    """Layers draw where they start from torch's global generator: every test starts it anew, so none is by chance."""
    torch.manual_seed(0)

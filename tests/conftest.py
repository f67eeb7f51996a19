import os

import pytest
import torch

os.environ['HF_HUB_OFFLINE'] = '1'  # a test that would need the network fails at once


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


torch.set_num_threads(1)  # the suite runs one process per core

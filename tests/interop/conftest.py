import pytest
import torch
from interop_networks import NETWORKS
from parity import images


@pytest.fixture(params=NETWORKS)
def model(request):
    """Each kind of network."""
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.fixture
def x():
    return images(2, 3, 64, 64, dtype=torch.float32)

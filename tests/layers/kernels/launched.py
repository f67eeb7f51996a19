"""The blocks launch their kernels through Triton's own launcher, compiled for a GPU that is not there.

test_kernels.py runs this file. In the place of the driver stands one that checks each argument and computes nothing:
whatever Triton specialises (an integer of 1, a pointer's alignment, None) is compiled and launched as on a card.
"""

from types import SimpleNamespace

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from timm_se_plugin.layers.kernels import available
from timm_se_plugin.layers.norm_act import norm_act
from timm_se_plugin.layers.residual_tail import residual_tail
from timm_se_plugin.layers.selective_kernel import SelectiveKernel
from timm_se_plugin.layers.squeeze_excite import SqueezeExcite

launched = set()


class Launcher:
    """What calls the driver with a compiled kernel."""

    def __init__(self, src, metadata):
        self.name, self.signature = src.fn.__name__, src.signature

    def __call__(self, x, y, z, stream, function, *arguments):
        assert 0 < x < 2**31, (self.name, x)
        assert (y, z) == (1, 1), (self.name, y, z)  # these have a limit of 65,535
        for (name, kind), value in zip(self.signature.items(), arguments[-len(self.signature):], strict=True):
            expected = torch.Tensor if kind.startswith('*') else int if kind.startswith('i') else float
            assert kind == 'constexpr' or (isinstance(value, expected) and value is not True), (self.name, name, kind)
        launched.add(self.name)


class Driver:
    """A driver of Triton for an H100 that runs nothing."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda name, kernel, shared, device: (1, 2, 40, 0, 1024), unload_module=lambda module: None,
        get_device_properties=lambda device: {
            'max_shared_mem': 232448, 'multiprocessor_count': 132, 'max_num_regs': 65536, 'warpSize': 32})

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device('cpu')


def block(shape, layout, training, dtype):
    """A tail and a middle, forward and backward and without gradients."""
    C = shape[1]
    bn, se = nn.BatchNorm2d(C, momentum=1).train(training), SqueezeExcite(C, rd_channels=2)
    x, shortcut = (torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float32):
        residual_tail(x * 1, shortcut, bn, se, None, nn.ReLU()).sum().backward()
    norm_act(x * 1, bn, nn.ReLU()).mean().backward()
    with torch.no_grad():
        norm_act(x * 1, bn, nn.ReLU(), nn.Conv2d(1, 1, 1))


if __name__ == '__main__':
    driver.set_active(Driver())
    available.DEVICES = {'cpu'}
    block((2, 16, 8, 8), torch.channels_last, True, torch.bfloat16)
    block((1, 3, 5, 5), torch.contiguous_format, False, torch.bfloat16)
    block((4, 1, 1, 1), torch.contiguous_format, True, torch.float32)  # each of these integers is 1 somewhere
    SelectiveKernel(8, 8)(torch.randn(2, 8, 6, 6, requires_grad=True)).sum().backward()
    print(' '.join(sorted(launched)))

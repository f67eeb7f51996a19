"""The process that runs this code: its device and rank, and how torch is set up in it."""

import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

from ..measuring.device import check_device

__all__ = ['Process', 'init_process']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """One process of a run: its device, its rank, and the number of processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def distributed(self) -> bool:
        """Whether the run has more than one process."""
        return self.world_size > 1

    @property
    def primary(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def sum_dtype(self) -> torch.dtype:
        """Data type of sums on the device: float64, which Apple's GPUs do not have."""
        return torch.float32 if self.device.type == 'mps' else torch.float64

    def amp_dtype(self, options: Namespace) -> str:
        """Data type of autocast, ``'bfloat16'`` or ``'float16'``; empty for no autocast.

        A CPU that has to emulate bfloat16 gets none: a step would take ten times as long as in float32.
        """
        emulated = self.device.type == 'cpu' and options.amp_dtype == 'bfloat16' and not _has_bfloat16()
        return options.amp_dtype if options.amp and not emulated else ''

    def autocast(self, options: Namespace) -> AbstractContextManager:
        """Context of a forward pass: autocast, or nothing."""
        dtype = self.amp_dtype(options)
        return torch.autocast(self.device.type, dtype=getattr(torch, dtype)) if dtype else nullcontext()

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes, computed in place."""
        if self.distributed:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes one after another, (n,) of any length each, on the CPU."""
        tensor = tensor.cpu()
        if not self.distributed:
            return tensor
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, tensor)
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return bool(self.total(torch.tensor(int(flag), device=self.device))) if self.distributed else flag


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}  # not in torch 2.6
    known = [capabilities[name] for name in ('avx512_bf16', 'amx_bf16') if name in capabilities]
    return not known or any(known)


@contextmanager
def init_process(options: Namespace) -> Iterator[Process]:
    """Join the process group that torchrun or Slurm announces in the environment, and set torch up as the options say.

    When the block ends, the process group is destroyed and torch's settings are restored.

    Raises:
        ValueError: an unknown device, a CUDA device where torch finds none, float64 on a device that does not have it,
            or autocast in float16 with weights in bfloat16.
    """
    device = options.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    check_device(device)
    if device.startswith('mps') and options.model_dtype == 'float64':
        raise ValueError('--model-dtype float64 does not run on --device mps, which has no float64; give --model-dtype '
                         'float32 or --device cpu')
    if options.amp and options.amp_dtype == 'float16' and options.model_dtype == 'bfloat16':
        raise ValueError('--amp computes in float16, and --model-dtype bfloat16 keeps the weights in bfloat16, which '
                         'BatchNorm does not take together; give --amp-dtype bfloat16, or leave out one of the two')
    world = init_distributed_device_so(device, dist_backend=options.dist_backend)
    process = Process(torch.device(world['device']), world['global_rank'], world['world_size'])
    logging.getLogger('timm_se_plugin').setLevel(logging.INFO if process.primary else logging.WARNING)
    if options.amp and not process.amp_dtype(options):
        _logger.warning('this CPU would have to emulate bfloat16, so the run computes in float32')
    if process.device.type == 'cpu' and process.amp_dtype(options) == 'float16':
        _logger.warning(
            'float16 may take ten times as long as float32 on a CPU; --amp-dtype bfloat16 is faster if the CPU has it')
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(options.deterministic)
    torch.backends.cudnn.benchmark = not options.deterministic
    if options.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # otherwise torch refuses to call cuBLAS
    try:
        yield process
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        if world['distributed']:
            dist.destroy_process_group()

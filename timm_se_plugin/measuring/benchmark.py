"""The cost of attention: time and memory relative to the plain network, measured in turns in one process."""

import statistics
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.names import check_model
from ..placement import ATTENTIONS, fuse_for_inference
from .complexity import saved_bytes
from .device import check_device
from .provenance import provenance
from .turns import time_in_turns

__all__ = ['Case', 'check_rounds', 'measure', 'prepared_step', 'suite']

LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}  # of autocast; None for no autocast
_TIMM_SK = {'resnext50_32x4d': 'skresnext50_32x4d', 'resnet50': 'skresnet50', 'resnet50d': 'skresnet50d'}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        base: name of the plain network, timm's or the plugin's without ``_plugin``.
        attn: ``'se'`` or ``'sk'``, or ``'all'``: the variants are then the attentions of the ``attn`` flag.
        mode: ``'inference'``, ``'train'``, or ``'frozen'`` (training with BatchNorm on running statistics).
        batch: number of images.
        height: height of an image in pixels.
        width: width of an image in pixels.
        layout: memory format, ``'nchw'`` or ``'channels_last'``.
        dtype: ``'float32'``, or the type that autocast computes in.
        compiled: whether ``torch.compile`` compiles the network.
        split_input: SK's ``attn_split_input``.
    """

    base: str = 'resnet50'
    attn: str = 'se'
    mode: str = 'inference'
    batch: int = 8
    height: int = 224
    width: int = 224
    layout: str = 'nchw'
    dtype: str = 'float32'
    compiled: bool = False
    split_input: bool = False


def suite() -> list[Case]:
    """The cases of the speed table."""
    sk: dict[str, Any] = {'base': 'resnext50_32x4d', 'attn': 'sk'}
    split: dict[str, Any] = {'base': 'resnet50', 'attn': 'sk', 'split_input': True}
    modes: list[dict[str, Any]] = [{'batch': 1}, {'batch': 8}, {'mode': 'train'}]
    cases = [Case(layout=layout, **mode) for mode in [*modes, {'batch': 32}] for layout in LAYOUTS]
    cases += [Case(batch=1, height=480, width=640, layout=layout) for layout in LAYOUTS]
    cases.append(Case(mode='frozen', batch=2, height=480, width=640))
    cases += [Case(layout=layout, **sk, **mode) for mode in modes for layout in LAYOUTS]
    cases += [Case(layout=layout, **split, **mode) for mode in modes[1:] for layout in LAYOUTS]
    for base in ('resnet18', 'resnext50_32x4d', 'resnet101'):
        cases += [Case(base, layout=layout, **mode) for mode in modes for layout in LAYOUTS]
    cases += [Case(compiled=True, **mode) for mode in modes[1:]]
    return cases


def _networks(case: Case) -> dict[str, tuple[Callable[[], nn.Module], str]]:
    """The constructor of each variant, and the name of the variant that it is compared with."""
    options = {'attn_split_input': True} if case.split_input else {}

    def plain() -> nn.Module:
        return timm.create_model(case.base if timm.is_model(case.base) else f'{case.base}_plugin')

    def attended(attn: str = case.attn, **kwargs: Any) -> nn.Module:
        return timm.create_model(f'{case.base}_plugin', attn=attn, **options, **kwargs)

    def by_timm() -> nn.Module:
        if case.attn == 'sk':
            return timm.create_model(_TIMM_SK[case.base])
        return timm.create_model(case.base, block_args={'attn_layer': 'se'})

    if case.attn == 'all':
        return {'plain': (plain, 'plain'), **{attn: (partial(attended, attn), 'plain') for attn in ATTENTIONS}}
    networks: dict[str, tuple[Callable[[], nn.Module], str]] = {
        'plain': (plain, 'plain'),
        'plain fused': (partial(timm.create_model, f'{case.base}_plugin', attn_fused=True), 'plain'),
        'timm': (by_timm, 'plain'),
        'unfused': (lambda: attended(attn_fused=False), 'plain'),
        'fused': (attended, 'plain'),
    }
    if case.attn == 'sk':  # the plain sum of the branches, the least cost of any selection
        networks['floor'] = lambda: attended(attn_select='sum'), 'plain'
    if case.mode == 'inference' and not case.compiled:
        networks['plain folded'] = lambda: fuse_for_inference(plain().eval()), 'plain folded'
        networks['timm folded'] = lambda: fuse_for_inference(by_timm().eval()), 'plain folded'
        networks['deployed'] = lambda: fuse_for_inference(attended().eval()), 'plain folded'
    left_out = set() if _is_with_attention_in_timm(case) else {'timm', 'timm folded'}
    try:
        timm.create_model(f'{case.base}_plugin', device='meta', attn_fused=True)
    except ValueError:  # the network has none of timm's residual blocks, which are what is fused without attention
        left_out.add('plain fused')
    return {name: network for name, network in networks.items() if name not in left_out}


def _is_with_attention_in_timm(case: Case) -> bool:
    if case.attn == 'sk':
        return case.base in _TIMM_SK
    return timm.is_model(case.base) and timm.models.model_entrypoint(case.base).__module__ == 'timm.models.resnet'


def _prepared(model: nn.Module, case: Case, device: str) -> nn.Module:
    model = model.to(device).to(memory_format=LAYOUTS[case.layout]).train(case.mode != 'inference')
    if case.mode == 'frozen':
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return model


def _step(model: nn.Module, x: Tensor, y: Tensor, case: Case) -> Callable[[], None]:
    called = torch.compile(model) if case.compiled else model
    autocast_dtype = DTYPES[case.dtype]

    def forward() -> Tensor:
        with torch.autocast(x.device.type, dtype=autocast_dtype) if autocast_dtype else nullcontext():
            return called(x)

    def infer() -> None:
        with torch.inference_mode():
            forward()

    def train() -> None:
        model.zero_grad()
        F.cross_entropy(forward().float(), y).backward()

    return infer if case.mode == 'inference' else train


def _images(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Images and classes."""
    torch.manual_seed(0)
    x = torch.randn(case.batch, 3, case.height, case.width, device=device).to(memory_format=LAYOUTS[case.layout])
    return x, torch.arange(case.batch, device=device) % 10  # CIFAR's networks have ten classes


def prepared_step(case: Case, device: str, variant: str) -> Callable[[], None]:
    """One step of a variant, for a profiler."""
    model = _prepared(_networks(case)[variant][0](), case, device)
    return _step(model, *_images(case, device), case)


def measure(
        case: Case, rounds: int = 15, warmup: int = 3, device: str = 'cpu', variants: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Time the variants of a case in turns.

    Args:
        case: what to measure.
        rounds: number of measured turns.
        warmup: number of turns before the measured ones.
        device: ``'cpu'`` or a CUDA device.
        variants: some of plain, plain fused, timm, unfused, fused, floor, plain folded, timm folded and deployed, or
            names of attentions where the case has all of them; all of the case's variants if empty. A case has no
            variants of timm where timm does not have the network, and no plain fused variant where the network has none
            of timm's residual blocks. The variants that these are compared with are measured too.

    Returns:
        A row for each variant: the case, the versions, the median milliseconds, and ratios to the reference variant.
        The ratio of time is the median over turns, with its quartiles. ``saved_bytes_ratio`` compares the bytes kept
        for the backward pass, in eager training in float32, and ``peak_memory_ratio`` the network's own peak
        memory on CUDA, parameters and gradients included; in other cases both are empty.

    Raises:
        ValueError: the case has no such variant, network or size, there is no such device, or there are fewer than two
            rounds.
    """
    networks = _chosen(case, rounds, device, set(variants))
    x, y = _images(case, device)
    models = {name: _prepared(build(), case, device) for name, (build, _) in networks.items()}
    keeps = case.mode != 'inference' and case.dtype == 'float32' and not case.compiled
    saved = {name: saved_bytes(model, x) if keeps else 0 for name, model in models.items()}
    steps = {name: _step(model, x, y, case) for name, model in models.items()}
    # Networks of one class count together towards the limit of compiled programs, and those after it run in eager mode.
    if case.compiled:
        torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        seconds = time_in_turns(steps, rounds, warmup, x.device)
        peak = {name: _peak_memory(model, steps[name], x.device) for name, model in models.items()}

    rows = []
    for name, (_, reference) in networks.items():
        ratios = [own / compared for own, compared in zip(seconds[name], seconds[reference], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append({
            **asdict(case), 'variant': name, 'reference': reference, 'rounds': rounds,
            'milliseconds': round(1e3 * statistics.median(seconds[name]), 2), 'ratio': round(median, 4),
            'ratio_q25': round(low, 4), 'ratio_q75': round(high, 4),
            'saved_bytes_ratio': round(saved[name] / saved[reference], 4) if saved[name] else '',
            'peak_memory_ratio': round(peak[name] / peak[reference], 4) if peak[name] else '',
            **provenance(x.device),
        })
    return rows


def _chosen(case: Case, rounds: int, device: str, names: set[str]) -> dict[str, tuple[Callable[[], nn.Module], str]]:
    """The variants of these names and those that they are compared with; all if there are no names.

    Raises:
        ValueError: as :func:`measure`.
    """
    check_rounds(rounds)
    for name in ('batch', 'height', 'width'):
        if getattr(case, name) < 1:
            raise ValueError(f'{name}={getattr(case, name)} is not 1 or more')
    check_device(device)
    check_model(f'{case.base}_plugin')
    networks = _networks(case)
    if unknown := names - networks.keys():
        raise ValueError(f'the case has no variant {", ".join(sorted(unknown))}; choose from {", ".join(networks)}')
    names = names | {networks[name][1] for name in names}
    return {name: network for name, network in networks.items() if not names or name in names}


def check_rounds(rounds: int) -> None:
    """Raise ValueError for fewer rounds than quartiles need."""
    if rounds < 2:
        raise ValueError(f'rounds={rounds} is too few for quartiles; give 2 or more')


def _peak_memory(model: nn.Module, step: Callable[[], None], device: torch.device) -> int:
    """Bytes that a network and one step of it take at most on CUDA; 0 on a CPU."""
    if device.type != 'cuda':
        return 0
    model.zero_grad()
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    others = torch.cuda.memory_allocated(device) - held
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - others

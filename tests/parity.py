"""Comparing two networks, or two ways through one, in float64."""

import copy
from collections import Counter
from inspect import signature

import pytest
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

IS_OLD_TIMM = 'data_config' not in signature(save_for_hf).parameters  # before 1.0.31
needs_new_timm = pytest.mark.skipif(
    IS_OLD_TIMM, reason='timm records what a model was built with, and has what a training needs, from 1.0.31')


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BatchNorm statistic a value that matters (no zeros, no ones)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith('running_var') or (tensor.dim() == 1 and name.endswith('weight')):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.2, generator=generator)
            elif tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)  # no gate or softmax saturates
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms and isinstance(getattr(model, 'in_chans', None), int):
        # Statistics of real activations: in evaluation nothing explodes from one residual block to the next.
        momenta = [norm.momentum for norm in norms]
        mode = model.training
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            side = min(96, getattr(model, 'pretrained_cfg', {}).get('input_size', (3, 96, 96))[-1])
            size = (4, model.in_chans, side, side)
            model.train()(torch.randn(*size, generator=generator, dtype=next(model.parameters()).dtype))
        model.train(mode)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def set_mode(model: nn.Module, mode: str) -> nn.Module:
    """The model in mode 'train', 'eval', 'frozen' (training with running statistics), or 'frozen without gradients'."""
    model.train(mode != 'eval')
    for module in model.modules():
        if mode.startswith('frozen') and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            if mode == 'frozen without gradients':
                module.requires_grad_(False)
    return model


def saved(model: nn.Module, folder) -> dict[str, str]:
    """Save the weights of `model`; the result is a ``pretrained_cfg_overlay`` that loads them."""
    path = folder / 'model.safetensors'
    save_file(model.state_dict(), path)
    return {'file': str(path)}


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    result, expected = result.detach(), expected.detach()
    return float((result - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of `model` at x, and the gradient of every parameter and of x under a random loss."""
    x = x.clone().requires_grad_()
    out = model(x)
    model.zero_grad()
    (out * images(*out.shape, seed=1, dtype=out.dtype)).sum().backward()
    return out.detach(), {'input': x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def assert_same_network(model: nn.Module, reference: nn.Module, x: Tensor, key_map=None, tolerance: float = 1e-10):
    """Outputs, all gradients and running statistics agree, in training and in evaluation, in float64."""
    model, reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    for training in (False, True):
        out, grads = gradients(model.train(training), x)
        expected_out, expected = gradients(reference.train(training), x)
        if key_map is not None:
            expected = key_map(expected)
        assert relative_error(out, expected_out) < tolerance
        assert grads.keys() == expected.keys()
        # A gradient that is zero in theory (a bias before a BatchNorm) is rounding, compared to the others.
        noise = 1e-3 * max(float(grad.abs().max()) for grad in expected.values())
        for name, grad in expected.items():
            difference = float((grads[name] - grad).abs().max())
            assert difference < tolerance * max(noise, float(grad.abs().max())), name
    theirs = reference.state_dict() if key_map is None else key_map(reference.state_dict())
    for name, buffer in model.named_buffers():
        assert relative_error(buffer.double(), theirs[name].double()) < tolerance, name


def most_calls(model: nn.Module, x: Tensor) -> int:
    """How often a forward and a backward pass compute the convolution that they compute most often."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, args, name=name: calls.update([name]))
    model(x).mean().backward()
    return max(calls.values())

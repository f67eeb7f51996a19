"""A report of what the package finds on this machine: versions, extras, processors, the Hub, caches."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

import torch
from packaging.requirements import Requirement

from ..files.version import __version__
from .device import processor

__all__ = ['environment']

_NAME = 'timm-se-plugin'
_OTHER = {'mmdet': 'onedl', 'onedl': 'mmdet'}    # two builds of MMDetection, with the same names to import


def environment(ask_hub: bool = True) -> dict[str, dict[str, str]]:
    """Versions, extras, processors, fused computations, the Hub and caches: sentences by name, in sections.

    Args:
        ask_hub: whether to ask the Hugging Face Hub for an answer, which may take five seconds.
    """
    return {
        'Versions': _versions(), 'Extras': _extras(), 'Processors': _processors(), 'Attention': _attention(),
        'Hugging Face Hub': _hub(ask_hub), 'Caches': _caches()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in importlib.metadata.requires(_NAME) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _stated(requirement: Requirement) -> str:
    """A package with the installed version, and with the required one if that is another."""
    version = _version(requirement.name)
    if version is None:
        return f'{requirement.name} is missing'
    wrong = not requirement.specifier.contains(version, prereleases=True)
    return f'{requirement.name} {version}' + (f', but {requirement.specifier} is required' if wrong else '')


def _versions() -> dict[str, str]:
    found = {_NAME: __version__, 'Python': f'{platform.python_version()} on {platform.platform()}'}
    for requirement in _requirements():
        if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
            found[requirement.name] = _stated(requirement).removeprefix(f'{requirement.name} ')
    if len(found) == 2:
        found[_NAME] += '; the package is not installed, so its requirements are unknown'
    return found


def _extras() -> dict[str, str]:
    lines = {}
    try:
        names = importlib.metadata.metadata(_NAME).get_all('Provides-Extra') or []
    except importlib.metadata.PackageNotFoundError:
        names = []
    for extra in names:
        stated = [_stated(requirement) for requirement in _requirements_of(extra)]
        wrong = [text for text in stated if ' is missing' in text or ' is required' in text]
        lines[extra] = 'complete' if not wrong else (
            f'{"; ".join(wrong)}; pip install "{_NAME}[{extra}]" adds what is missing')
        other = _OTHER.get(extra)
        if wrong and other and all(_version(r.name) for r in _requirements_of(other)):
            lines[extra] = f'not for this environment, which has {other}: an environment holds one of the two'
    return lines


def _requirements_of(extra: str) -> list[Requirement]:
    """What the extra asks for beyond the package itself."""
    return [r for r in _requirements() if r.marker is not None and r.marker.evaluate({'extra': extra})
            and not r.marker.evaluate({'extra': ''})]


def _processors() -> dict[str, str]:
    found = {'CPU': f'{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in PyTorch'}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found[f'cuda:{i}'] = f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'
    if torch.backends.mps.is_available():
        found['mps'] = "Apple's GPU"
    if len(found) == 1:
        built = 'PyTorch is built for the CPU' if torch.version.cuda is None and torch.version.hip is None else \
            'PyTorch finds none'
        found['GPU'] = f'none: {built}'
    return found


def _attention() -> dict[str, str]:
    triton = _version('triton')
    return {
        'CPU': 'fused in plain PyTorch; attn_fused=False computes module by module',
        'MPS': 'module by module; only CPUs and CUDA have the fused computation',
        'torch.compile': 'fused in plain PyTorch, which the compiler fuses further',
        'CUDA, ROCm': 'not fused: PyTorch finds no GPU' if not torch.cuda.is_available() else
        f'fused by Triton {triton}, in float32, float16 and bfloat16' if importlib.util.find_spec('triton') else
        'fused by PyTorch operators, since Triton is missing; `pip install triton` adds the kernels',
        'MMDetection': _operators(),
    }


def _operators() -> str:
    if importlib.util.find_spec('mmdet') is None:
        return 'missing'
    compiled = importlib.util.find_spec('mmcv') is not None and importlib.util.find_spec('mmcv._ext') is not None
    return "with mmcv's compiled operators" if compiled else "with torchvision's operators in the place of mmcv's"


def _hub(ask: bool) -> dict[str, str]:
    from huggingface_hub import constants, get_token
    token = 'there is one' if get_token() else 'none; `hf auth login` sets one, which a push needs'
    if constants.HF_HUB_OFFLINE:
        return {constants.ENDPOINT: 'not asked: offline mode is on (HF_HUB_OFFLINE)', 'token': token}
    return {constants.ENDPOINT: _answer(constants.ENDPOINT) if ask else 'not asked', 'token': token}


def _answer(endpoint: str) -> str:
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen
    try:
        with urlopen(endpoint, timeout=5):
            return 'answers'
    except HTTPError as error:
        return f'answers with the error {error.code}'
    except (URLError, OSError) as error:
        return f'does not answer ({getattr(error, "reason", error)}); models in the cache still load'


def _caches() -> dict[str, str]:
    from huggingface_hub import constants
    folders = {'models of the Hub': Path(constants.HF_HUB_CACHE), 'PyTorch': Path(torch.hub.get_dir())}
    return {name: f'{path}' if path.is_dir() else f'{path}, which does not exist yet' for name, path in folders.items()}

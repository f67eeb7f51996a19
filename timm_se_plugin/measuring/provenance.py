"""Which versions, commit and machine a measurement comes from."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

__all__ = ['provenance']


def _git(*command: str) -> str:
    try:
        git = ['git', '-C', str(Path(__file__).parents[1]), *command]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ''


def _commit() -> str:
    """Commit of the package, with '+' if its own files differ from it; empty where it is installed without them."""
    if not _git('ls-files', '/'.join(Path(__file__).parts[-2:])):  # an installed package may lie in a repository
        return ''
    return _git('rev-parse', '--short', 'HEAD') + ('+' if _git('status', '--porcelain', '.') else '')


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, commit of the package with '+' if it has changes, and machine of a run."""
    return {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine(),
        'threads': torch.get_num_threads(), 'python': platform.python_version(), 'torch': str(torch.__version__),
        'timm': timm.__version__, 'commit': _commit()}

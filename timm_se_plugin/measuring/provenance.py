"""The versions, the commit and the machine of a measurement."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

from .device import processor

__all__ = ['commit', 'provenance']


def _git(*command: str) -> str:
    try:
        git = ['git', '-C', str(Path(__file__).parents[1]), *command]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ''


def commit() -> str:
    """Commit of the package, with '+' if the package's files differ from it; empty if they are in no repository."""
    if not _git('ls-files', '/'.join(Path(__file__).parts[-2:])):  # installed, perhaps inside another repository
        return ''
    return _git('rev-parse', '--short', 'HEAD') + ('+' if _git('status', '--porcelain', '.') else '')


def provenance(device: torch.device) -> dict[str, Any]:
    """Columns for a table of results: device, threads, versions, and commit, with '+' if the package has changes."""
    names = {'cuda': torch.cuda.get_device_name, 'cpu': lambda device: processor()}
    return {
        'device': names.get(device.type, str)(device),
        'threads': torch.get_num_threads(), 'python': platform.python_version(), 'torch': str(torch.__version__),
        'timm': timm.__version__, 'commit': commit()}

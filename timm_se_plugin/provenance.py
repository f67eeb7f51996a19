"""Which versions, commit and machine a measurement comes from."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

__all__ = ['provenance']


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, commit of the package with '+' if it has changes, and machine of a run."""
    git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty=+', '--exclude=*']
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ''
    return {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine(),
        'threads': torch.get_num_threads(), 'python': platform.python_version(), 'torch': str(torch.__version__),
        'timm': timm.__version__, 'commit': commit}

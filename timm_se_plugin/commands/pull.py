"""Fetch a shared model or detector from the Hugging Face Hub, check it, and write it into a folder.

timm-se pull user/se-resnet18-digits digits
timm-se pull hf-hub:user/cells@v2 cells

timm.create_model('local-dir:digits', pretrained=True) and timm-se detect predict local-dir:cells load the folder.
"""

import argparse
from typing import Any

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('repository', help='repository on the Hub, as user/name or user/name@revision')
    parser.add_argument('folder', help='folder to write into, which has to be new or empty')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fetch, and return the sizes of the files."""
    from ..files.hub_files import HUB
    from ..sharing import pull_from_hub

    files = pull_from_hub(f'{HUB}{args.repository.removeprefix(HUB)}', args.folder)
    for name, size in files.items():
        print(f'{name}: {size:,} bytes')
    print(f'written to {args.folder}')
    return {'files': files, 'folder': args.folder}

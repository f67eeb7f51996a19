"""List the names of networks, with the tags of their published weights.

timm-se models                      all networks of the plugin
timm-se models resnet50             those whose name has 'resnet50' in it
timm-se models 'sk_*' --pretrained  those with weights, by a pattern
timm-se models efficientnet --all   timm's own as well
"""

import argparse
from typing import Any

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('pattern', nargs='?', default='*', help='part of a name, or a pattern with * and ?')
    parser.add_argument('--pretrained', action='store_true', help='list only networks with published weights')
    parser.add_argument('--all', action='store_true', help="list timm's own networks as well")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the names, and return them with their attention and the tags of their weights.

    Raises:
        ValueError: no name fits the pattern.
    """
    from collections import defaultdict

    import timm

    from ..models._registry import architectures

    pattern = args.pattern if {'*', '?'} & set(args.pattern) else f'*{args.pattern}*'
    tags = defaultdict(list)
    for whole in timm.list_models(pretrained=True):
        name, _, tag = whole.partition('.')
        tags[name].append(tag)
    rows = []
    for name in timm.list_models(pattern):
        arch = architectures.get(name)
        if (arch or args.all) and (tags[name] or not args.pretrained):
            attn = arch.attn.attn if arch and arch.attn else None
            rows.append({'name': name, 'attention': attn, 'weights': tags[name]})
    if not rows:
        raise ValueError(f'no network{" with weights" if args.pretrained else ""} has a name like {args.pattern!r}; '
                         "--all lists timm's own as well")
    width = max(len(row['name']) for row in rows)
    for row in rows:
        print(f'{row["name"]:<{width}}  {", ".join(row["weights"]) or "no published weights"}')
    return rows

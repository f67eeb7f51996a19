"""Count parameters and MACs of a network by its modules, or those of the papers' networks beside the published numbers.

timm-se complexity se_resnet50_plugin
timm-se complexity --published --output results/complexity.csv
"""

import argparse
from pathlib import Path
from typing import Any

from .network_options import add_network, network

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_network(parser, nargs='?')
    parser.add_argument('--published', action='store_true',
                        help="count the papers' networks and write a table with the published numbers instead")
    parser.add_argument('--output', type=Path, help='table of --published (default: results/complexity.csv)')


def run(args: argparse.Namespace) -> Any:
    """Count and print, and return the counts.

    Raises:
        ValueError: neither a network nor ``--published`` was given, or both, or an option of the other.
    """
    from dataclasses import asdict

    from ..measuring.complexity import complexity

    if args.published == bool(args.model):
        raise ValueError('give the name of one network, or --published')
    if args.published:
        for option, given in (('--model-kwargs', args.model_kwargs), ('--input-size', args.input_size)):
            if given:
                raise ValueError(f"{option} is for one network, and --published counts the papers' as they are")
        return _published(args.output or Path('results/complexity.csv'))
    if args.output:
        raise ValueError(f'--output {args.output} is the table of --published; give both or neither')
    cost = complexity(*network(args))
    print(cost)
    return {'input_size': cost.input_size, 'params': cost.params, 'macs': cost.macs,
            'attention_params': cost.attention_params, 'attention_macs': cost.attention_macs,
            'modules': [asdict(module) for module in cost.modules]}


def _published(path: Path) -> list[dict[str, Any]]:
    import timm

    from ..files.tables import replace_rows
    from ..measuring.complexity import complexity
    from ..measuring.published_costs import PUBLISHED

    rows = []
    for one in PUBLISHED:
        model = timm.create_model(one.model, device='meta', **one.options)
        cost = complexity(model, (3, one.size, one.size))
        rows.append({
            'network': one.network, 'source': one.source, 'model': one.model, 'attn': one.options.get('attn', ''),
            'size': one.size, 'parameters': cost.params, 'macs': cost.macs,
            'attention_parameters': cost.attention_params, 'paper_parameters_millions': one.parameters or '',
            'paper_gmacs': one.gmacs or '', 'timm': timm.__version__})
    replace_rows(path, rows, ('network', 'source'))
    print(f'written to {path}')
    return rows

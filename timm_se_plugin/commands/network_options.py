"""Options of the commands that take a network by its name and look at it without weights."""

import argparse
from typing import Any

from ..files.key_values import KeyValues

__all__ = ['add_network', 'network']


def add_network(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add the name of a network, with `options` of its argument, ``--model-kwargs`` and ``--input-size``."""
    parser.add_argument('model', help="timm's or the plugin's name of the network", **options)
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='arguments of the network, such as attn=se')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'),
                        help="size of the image; by default the network's own")


def network(args: argparse.Namespace) -> tuple[Any, tuple[int, int, int] | None]:
    """The network on the meta device, and the size of its image; None for the network's own."""
    import timm

    from ..models.names import check_model, keywords_of
    check_model(args.model, args.model_kwargs)
    with keywords_of(args.model, args.model_kwargs):
        model = timm.create_model(args.model, device='meta', **args.model_kwargs)
    return model, tuple(args.input_size) if args.input_size else None

"""Options that several commands of detectors have."""

import argparse
import os
from typing import Any

__all__ = [
    'ConfigOptions', 'add_checkpoint', 'add_config', 'add_launcher', 'add_picture_check', 'given_checkpoint',
    'launcher', 'options_text']


class ConfigOptions(argparse.Action):
    """MMEngine's ``DictAction``, imported only when such an option is given, so that ``--help`` is quick."""

    def __call__(self, *given: Any, **named: Any) -> None:  # noqa: D102
        from mmengine.config import DictAction
        DictAction(self.option_strings, self.dest, nargs='+')(*given, **named)


def add_config(
        parser: argparse.ArgumentParser, example: str = 'model.backbone.attn=sk', nargs: str | None = None) -> None:
    """Add the configuration, and ``--cfg-options``, with an example."""
    parser.add_argument('config', nargs=nargs, help='configuration: a file, or the name of one in mmdet_configs')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE',
                        help=f'change values of the configuration, as in {example}')


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the weights, which are left out where the folder of a training is given instead of a configuration."""
    parser.add_argument('checkpoint', nargs='?',
                        help='weights of the detector; left out where the folder of a training is given instead of a '
                             'configuration: its configuration and its best or last checkpoint are taken')
    parser.set_defaults(takes_others=True)


def given_checkpoint(args: argparse.Namespace) -> str | None:
    """The weights. Up to Python 3.12, argparse takes no argument that may be left out from behind an option."""
    if args.checkpoint is None and len(args.others) == 1 and not args.others[0].startswith('-'):
        return args.others[0]
    if args.others:
        args.parser.error(f'unrecognized arguments: {" ".join(args.others)}')
    return args.checkpoint


def options_text(options: dict[str, Any]) -> str:
    """Options as a table has them: ``key=value``, separated by spaces, in the order of their names."""
    return ' '.join(f'{key}={value}' for key, value in sorted(options.items()))


def add_picture_check(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-picture-check``."""
    parser.add_argument('--no-picture-check', action='store_true',
                        help='do not compare the picture files with the annotations before the first step; the check '
                             'reads the header of each file')


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and ``--local-rank``, an option that older launchers pass."""
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'),
                        help='what started the processes, if there are several; torchrun is recognised')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def launcher(args: argparse.Namespace) -> str:
    """What started the processes. A rank that a launcher passed as an option is set where MMEngine reads it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args.launcher or ('pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none')

"""Share a saved model, or the model of a training, on the Hugging Face Hub.

timm-se push work_dirs/demo/se_resnet18_digits user/se-resnet18-digits --license apache-2.0 --dry-run
timm-se push work_dirs/faster-rcnn_se-r18_fpn_bccd user/cells --data "BCCD, train" --private
"""

import argparse
from pathlib import Path
from typing import Any

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('source', help='folder of a saved model, or of a run of timm-se train or timm-se detect train')
    parser.add_argument('repository', help='repository on the Hub, user/name')
    parser.add_argument('--revision', help='branch, which is created if it does not exist')
    parser.add_argument('--private', action='store_true', help='make the repository private')
    parser.add_argument('--message', default='Add model', help='message of the commit (default: %(default)s)')
    parser.add_argument('--license', help="for the model card: the Hub's identifier of the license, such as apache-2.0")
    parser.add_argument('--data', help='for the model card: what the model was trained on')
    parser.add_argument('--recipe', help='for the model card: how the model was trained')
    parser.add_argument('--results', metavar='CSV', help='for the model card: a table of measured results')
    parser.add_argument('--results-row', type=int, metavar='N',
                        help='row of --results that belongs to the weights, counted from 1, or backwards from -1')
    parser.add_argument('--dry-run', action='store_true', help='show every file and send nothing')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Share, and return the sizes of the files and the address of the commit."""
    from ..sharing import push_to_hub
    from ..weights.facts import Facts, csv_row

    if args.results_row is not None and not args.results:
        raise ValueError(f'--results-row {args.results_row} is the row of a table; name the table with --results')
    facts = Facts(
        args.license, args.data, args.recipe, args.results and csv_row(args.results, args.results_row),
        args.results and Path(args.results).name)
    shared = push_to_hub(
        args.source, args.repository, facts, args.revision, args.private, args.message, dry_run=args.dry_run)
    for name, size in shared.files.items():
        print(f'{name}: {size:,} bytes')
    if args.dry_run:
        for name, text in shared.texts.items():
            print(f'\n===== {name}\n{text}')
    print(f'nothing was sent to {args.repository}' if args.dry_run else shared.url)
    return {'files': dict(shared.files), 'url': shared.url}

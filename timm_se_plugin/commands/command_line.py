"""Reads a command line, and runs the module of its command."""

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..files.json_values import finite
from ..files.packages import require
from ..files.version import __version__

__all__ = ['COMMANDS', 'command_parser', 'main', 'parse', 'run']

# The module of 'detect train' is detect_train.
COMMANDS = (
    'train', 'evaluate', 'predict', 'analyze', 'ablate', 'prune',
    'detect train', 'detect test', 'detect predict', 'detect compare', 'detect cost', 'detect demo',
    'convert', 'export', 'push', 'pull', 'models', 'sites', 'complexity', 'bench', 'demo', 'doctor')
_GROUPS = {'detect': 'Train, test and use detectors of MMDetection.'}
# Packages of the extras, by the names that are imported.
_EXTRAS = {
    'analysis': ('torch_pruning',), 'export': ('cv2', 'onnx', 'onnxruntime', 'onnxscript'),
    'mmdet': ('mmcv', 'mmdet', 'mmengine', 'pycocotools'),
    'train': ('datasets', 'matplotlib', 'sklearn', 'tensorboard', 'tqdm', 'webdataset')}
_LOGGED = '%(asctime)s %(message)s'


class _Completion(argparse.Action):
    """Print a script that completes the words of this command in a shell."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        require('completion', 'shtab')
        import shtab
        print(shtab.complete(parser, shell))
        parser.exit()


def _module(command: str) -> Any:
    return importlib.import_module(f'.{command.replace(" ", "_")}', __package__)


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command, made without imports that take long."""
    root = argparse.ArgumentParser(
        prog='timm-se', allow_abbrev=False,
        description='Channel attention for timm and MMDetection: train, evaluate, analyse, detect, convert and share.',
        epilog='timm-se COMMAND --help lists the options of a command.')
    root.add_argument('--version', action='version', version=f'timm-se {__version__}', help='print the version')
    root.add_argument('--traceback', action='store_true', help='show where in the code an error was raised')
    root.add_argument('--completion', action=_Completion, choices=('bash', 'zsh', 'tcsh'),
                      help='print a script that completes this command in a shell')
    groups = {'': root.add_subparsers(metavar='COMMAND', required=True)}
    for command in COMMANDS:
        group, _, name = command.rpartition(' ')
        if group not in groups:
            inner = groups[''].add_parser(
                group, help=_sentence(_GROUPS[group]), description=_GROUPS[group],
                epilog=f'timm-se {group} COMMAND --help lists the options of a command.')
            groups[group] = inner.add_subparsers(metavar='COMMAND', required=True)
        module = _module(command)
        parser = groups[group].add_parser(
            name, help=_sentence(module.__doc__), description=module.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.set_defaults(command=command, parser=parser)
        module.add_arguments(parser)
        parser.add_argument('--json', action='store_true', help='print the result as JSON, and other text to stderr')
    return root


def _sentence(text: str) -> str:
    return text.strip().partition('\n\n')[0].replace('\n', ' ').rstrip('.').replace('%', '%%')


def parse(words: Sequence[str] | None = None, command: str = '') -> argparse.Namespace:
    """Read a command line. ``words`` of the result are the words after the name of the command.

    Args:
        words: the command line; that of this process if None.
        command: words that come before `words`, such as ``'detect train'``.
    """
    # MMEngine looks packages up with pkg_resources, and a user of the command cannot change that.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated as an API', UserWarning)
    given = [*command.split(), *(sys.argv[1:] if words is None else words)]
    args: argparse.Namespace
    with _errors_as_messages('--traceback' in given):
        args, args.others = command_parser().parse_known_args(given)
    if args.others and not getattr(args, 'takes_others', False):
        args.parser.error(f'unrecognized arguments: {" ".join(args.others)}')
    behind = given.index(args.command.split()[-1]) + 1
    args.words = [word for word in given[behind:] if word != '--json']
    return args


def run(args: argparse.Namespace) -> None:
    """Run a command that :func:`parse` has read. An error that the user can correct is a message without traceback."""
    logging.basicConfig(format=_LOGGED, datefmt='%H:%M:%S', level=logging.WARNING)
    logging.getLogger('timm_se_plugin').setLevel(logging.INFO)
    logging.getLogger('huggingface_hub').propagate = False  # it prints its warnings by a handler of its own
    if hasattr(sys.stdout, 'reconfigure'):  # a name that the output's encoding lacks does not end the command
        sys.stdout.reconfigure(errors='backslashreplace')
    with _errors_as_messages(args.traceback):
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            result = _module(args.command).run(args)
        is_another = 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('RANK') != '0'  # of torchrun's processes
        if args.json and not is_another:
            print(json.dumps(finite(result), indent=1, default=str))


def main(words: Sequence[str] | None = None, command: str = '') -> None:
    """Read and run a command line; the arguments are those of :func:`parse`."""
    run(parse(words, command))


@contextlib.contextmanager
def _errors_as_messages(traceback: bool) -> Any:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # A RuntimeError of torch or another package is not written for the user of this command.
        is_foreign = isinstance(error, RuntimeError) and not type(error).__module__.startswith('timm_se_plugin')
        if traceback or is_foreign:
            raise
        sys.exit(f'timm-se: {error or type(error).__name__}{_what_to_install(error)}')
    except KeyboardInterrupt:
        if traceback:
            raise
        print('timm-se: interrupted', file=sys.stderr)
        sys.exit(130)  # what a shell says of a program that SIGINT has ended


def _what_to_install(error: Exception) -> str:
    """The extra that brings a missing package, as the end of a message that does not name it yet."""
    missing = (getattr(error, 'name', None) or '').partition('.')[0]
    extra = next((extra for extra, packages in _EXTRAS.items() if missing in packages), None)
    if not isinstance(error, ModuleNotFoundError) or extra is None or 'pip install' in str(error):
        return ''
    return f'; the extra {extra} brings it: pip install "timm-se-plugin[{extra}]"'

"""Measure how long the command timm-se takes to print its help, beside an empty Python program.

`python tools/measure_start_up.py` prints medians of 20 turns.
"""

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from timm_se_plugin.measuring.turns import time_in_turns

LAUNCHER = Path(__file__).resolve().parents[1] / 'timm_se_plugin' / 'commands' / '_launcher.py'
START = f"import runpy, sys; sys.argv[0] = 'timm-se'; runpy.run_path({str(LAUNCHER)!r})['main']()"
CASES = {'python -c pass': ['pass'], **{
    f'timm-se {words}': [START, *words.split()] for words in ('--help', '--version', 'train --help', 'detect --help')}}


def main() -> None:
    """Measure in turns, so that a slow moment of the machine affects every case."""
    run = partial(subprocess.run, stdout=subprocess.DEVNULL, check=True)
    steps = {case: partial(run, [sys.executable, '-c', *words]) for case, words in CASES.items()}
    for case, times in time_in_turns(steps, rounds=20, warmup=0).items():
        print(f'{case:<24}{statistics.median(times):>8.3f} s, at most {max(times):.3f} s')


if __name__ == '__main__':
    main()

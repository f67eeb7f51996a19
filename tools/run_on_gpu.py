"""Everything that a borrowed GPU is to tell, in one command: tests, speed table, profile.

What has finished is kept when the time runs out: results/speed-cuda.csv grows by a case at a time, the most telling
first. `--device cpu` rehearses the command with tiny images.
"""

import argparse
from pathlib import Path

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.measuring.gpu_run import run


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', help='cuda, or cpu for a rehearsal')
    parser.add_argument('--minutes', type=float, default=9.5, help='for everything')
    parser.add_argument('--rounds', type=int, default=9, help='of each measurement')
    parser.add_argument('--output', type=Path, default=Path('results'), help='folder of the tables')
    parser.add_argument('--no-tests', action='store_true', help='measure only')
    args = parser.parse_args()
    tests = None if args.no_tests else Path(__file__).parents[1] / 'tests'
    run(args.device, args.minutes, args.output, tests, args.rounds)


if __name__ == '__main__':
    main()

"""Run the tests that need a GPU, measure the speed table and take a profile, within a given time.

Finished cases are kept in results/speed-cuda.csv when the time runs out. The most informative ones come first, and in a
later run those that the table does not have yet; `--no-tests` leaves all of the time to them. `--device cpu` rehearses
the command with tiny images. The package need not be installed. The last line says what failed, and the exit status is
then 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.measuring.gpu_run import run


def main() -> int:
    """Read the options and run. Returns 1 if something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', help='cuda, or cpu for a rehearsal')
    parser.add_argument('--minutes', type=float, default=9.5, help='time for everything (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=9, help='turns of each case (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('results'),
                        help='folder for the tables (default: %(default)s)')
    parser.add_argument('--no-tests', action='store_true', help='run no tests, only measure')
    args = parser.parse_args()
    tests = None if args.no_tests else Path(__file__).parents[1] / 'tests'
    try:
        return int(bool(run(args.device, args.minutes, args.output, tests, args.rounds)))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    sys.exit(main())

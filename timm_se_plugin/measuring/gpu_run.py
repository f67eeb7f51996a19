"""A run on a GPU that is available only for some minutes: tests, the speed table, and a profile by kernel."""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..files.tables import check_table, read_table, replace_rows
from .benchmark import Case, check_rounds, measure, prepared_step
from .device import check_device
from .provenance import provenance

__all__ = ['cases', 'run']

_SECONDS_FOR_A_CASE = {False: 30, True: 240}  # if compiled; with less time left, the case is not begun


def cases() -> list[Case]:
    """The cases of the speed table for a GPU, the most informative first.

    Small batches come early: there the processor that launches the kernels may be what takes the time. Compiled cases
    take minutes each; two of them come before the other layouts and types.
    """
    networks: list[dict[str, Any]] = [
        {}, {'base': 'resnext50_32x4d'}, {'base': 'resnet50', 'attn': 'sk', 'split_input': True}]
    every = [
        Case(mode=mode, batch=batch, layout=layout, dtype=dtype, compiled=compiled, **network)
        for compiled in (False, True)
        for layout, dtype in (
            ('channels_last', 'float16'), ('channels_last', 'bfloat16'), ('nchw', 'float32'),
            ('channels_last', 'float32'), ('nchw', 'float16'), ('nchw', 'bfloat16'))
        for batch in (128, 32, 1, 256)
        for mode in ('train', 'inference')
        for network in networks]

    def wave(case: Case) -> int:
        is_first = (case.layout, case.dtype) == ('channels_last', 'float16')
        if case.compiled:
            return 1 if is_first and case.batch == 128 and case.base == 'resnet50' and case.attn == 'se' else 4
        return 0 if is_first and case.batch != 256 else 2 if case.batch == 128 else 3

    return sorted(every, key=wave)


def _tests(device: str, tests: Path, seconds: float) -> int:
    """Run the tests in processes of their own; returns pytest's exit code, or 124 if the time ran out.

    Compiling several hundred kernels takes longer than running them, hence several processes. pytest ends a test that
    hangs, and the session when its time is over, since only then it prints what has failed. No process of the tests is
    left to disturb the measurements.
    """
    environment, tests = dict(os.environ), tests.resolve()
    chosen = [tests / 'gpu']
    if device == 'cpu':
        environment['TIMM_SE_REHEARSAL'] = '1'
    else:
        chosen.append(tests / 'layers' / 'kernels' / 'interpreted.py')
    # The PyTorch of that machine may warn of what CI's does not, which is no failure; nor is an option of a plugin that
    # the machine lacks, which the option --strict-config of pyproject.toml would refuse.
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-W', 'default', '--tb=short',
               '-o', 'addopts=--import-mode=importlib', '-o', f'timeout={0.4 * seconds:.0f}',
               '-o', f'session_timeout={0.8 * seconds:.0f}', *map(str, chosen)]
    if device != 'cpu' and importlib.util.find_spec('xdist'):
        # No signal reaches a test that hangs in a call of CUDA: its process is ended, and another one takes its place.
        command += ['-n', str(min(16, os.cpu_count() or 1)), '-o', 'timeout_method=thread']
    # The working directory is where pytest and its processes find the package if it is not installed.
    process = subprocess.Popen(command, env=environment, cwd=tests.parent, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _profile(case: Case, device: str, variant: str) -> list[dict[str, Any]]:
    """Time of each kernel, or on a CPU of each operator, in a step after the warm-up."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != 'cpu':
        activities = [torch.profiler.ProfilerActivity.CUDA]
    step = prepared_step(case, device, variant)
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        if device != 'cpu':
            torch.cuda.synchronize(device)
    rows, measured_on = [], provenance(torch.device(device))
    for event in profiler.key_averages():
        microseconds = event.self_cpu_time_total if device == 'cpu' else event.self_device_time_total
        if microseconds:
            rows.append({**asdict(case), 'variant': variant, 'kernel': event.key, 'calls': event.count,
                         'microseconds': microseconds, **measured_on})
    return sorted(rows, key=lambda row: -row['microseconds'])


def run(device: str, minutes: float, output: Path, tests: Path | None = None, rounds: int = 9) -> list[str]:
    """Run tests, one profile, and as many cases of the speed table as the time allows; each is written when it ends.

    Cases that the table lacks come before those that an earlier run has measured.

    Args:
        device: ``'cuda'``, or ``'cpu'`` for a rehearsal with tiny images and batches.
        minutes: time for everything; the tests get at most 40 %.
        output: folder for ``speed-<device>.csv`` and ``profile-<device>.csv``.
        tests: folder of the tests; None to run no tests.
        rounds: number of measured turns of each case.

    Returns:
        What failed: the tests, cases, the profile. It is printed at the end too, since what a failure has printed may
        be far above.

    Raises:
        ValueError: there is no such device, or there are fewer than two rounds.
        UnwritableFileError: no table can be written into the folder.
    """
    check_device(device)
    check_rounds(rounds)
    speed, profile = (output / f'{name}-{device.partition(":")[0]}.csv' for name in ('speed', 'profile'))
    for table in (speed, profile):
        check_table(table)
    failed = list(_run(device, minutes, speed, profile, tests, rounds))
    print(f'failed: {"; ".join(failed)}' if failed else 'nothing failed', flush=True)
    return failed


def _run(device: str, minutes: float, speed: Path, profile: Path, tests: Path | None, rounds: int) -> Iterator[str]:
    """As :func:`run`; yields what has failed."""
    deadline = time.monotonic() + 60 * minutes
    rehearsal = device == 'cpu'
    chosen = cases()
    if rehearsal:
        # A CPU takes ten times as long in float16.
        small = [case for case in chosen if case.batch == 1 and not case.compiled and case.dtype != 'float16']
        chosen = [replace(case, batch=2, height=32, width=32) for case in small]
    print(provenance(torch.device(device)), flush=True)
    if tests is not None:
        code = _tests(device, tests, 24 * minutes)
        said = f'tests: exit code {code}' + (', the time ran out' if code == 124 else '')
        print(said, flush=True)
        if code:
            yield said
    options = [field.name for field in fields(Case)]
    earlier = {tuple(row.get(name) for name in options) for row in read_table(speed)}
    chosen.sort(key=lambda case: tuple(str(getattr(case, name)) for name in options) in earlier)
    yield from _measure_cases(chosen, 0, deadline, device, speed, profile, rounds)


def _is_lost(device: str) -> bool:
    """Whether the device gives this process nothing but errors, as a GPU does after an illegal access to memory."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False


def _measure_cases(
        chosen: list[Case], begun: int, deadline: float, device: str, speed: Path, profile: Path | None, rounds: int,
) -> list[str]:
    """Measure all but the first ``begun`` cases, and profile the first that succeeds; returns what has failed.

    If a failure leaves this process without the GPU, a new process continues with the next case. ``profile`` is None if
    there is a profile.
    """
    options = [field.name for field in fields(Case)]
    failed: list[str] = []
    left_out = 0
    for i, case in enumerate(chosen[begun:], start=begun + 1):
        if failed and _is_lost(device):
            print('the GPU refuses everything to this process; a new one continues', flush=True)
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                others = pool.submit(_measure_cases, chosen, i - 1, deadline, device, speed, profile, rounds)
                return failed + others.result()
        if deadline - time.monotonic() < (0 if device == 'cpu' else _SECONDS_FOR_A_CASE[case.compiled]):
            left_out += 1
            continue
        try:
            if device != 'cpu':
                torch.cuda.empty_cache()
            rows = measure(case, rounds, device=device, variants=('plain fused', 'timm', 'unfused', 'fused'))
        except Exception:  # one case without memory or with a defect leaves the time to the others
            print(f'[{i}/{len(chosen)}] {asdict(case)}:\n{traceback.format_exc(limit=-8)}', flush=True)
            failed.append(f'case {i}')
            continue
        replace_rows(speed, rows, [*options, 'variant'])
        ratios = '  '.join(f"{row['variant']} {row['milliseconds']} ms x{row['ratio']}" for row in rows)
        print(f'[{i}/{len(chosen)}] {case.base} {case.attn} {case.mode} {case.batch} {case.layout} {case.dtype}'
              f'{" compiled" if case.compiled else ""}: {ratios}', flush=True)
        if profile is None:
            continue
        try:
            profiles = [row for variant in ('plain', 'plain fused', 'timm', 'fused')
                        for row in _profile(case, device, variant)]
        except Exception:
            print(f'no profile:\n{traceback.format_exc(limit=-8)}', flush=True)
            failed.append('profile')
        else:
            replace_rows(profile, profiles, [*options, 'variant'])  # a later run begins with another case
        profile = None
    if left_out:
        print(f'the time was too short for {left_out} of {len(chosen)} cases, which another run measures first',
              flush=True)
    return failed

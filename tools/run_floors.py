"""Run a selection of tests with the oldest and with the newest releases that pyproject.toml admits, and write a page.

    python tools/run_floors.py

uv makes the environments in a temporary folder, one after the other: each has a PyTorch of several gigabytes.
The page is docs/tested-versions.md.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'tested-versions.md'
EXTRAS = {'oldest': 'dev,train,analysis,mmdet', 'newest': 'dev,train,analysis,mmdet,export'}
PYTHONS = {'oldest': '3.10', 'newest': '3.13'}
LISTED = (
    'torch', 'torchvision', 'timm', 'huggingface-hub', 'safetensors', 'filelock', 'numpy', 'pillow', 'matplotlib',
    'scikit-learn', 'tensorboard', 'webdataset', 'datasets', 'torch-pruning', 'mmdet', 'mmengine', 'mmcv-lite',
    'pycocotools', 'opencv-python', 'onnx', 'onnxscript', 'onnxruntime')

CORE = [
    'tests/test_imports.py', 'tests/test_saved.py', 'tests/layers/test_squeeze_excite.py',
    'tests/layers/test_residual_tail.py::test_scripts_traces_and_exports_the_modules',
    'tests/layers/test_residual_tail.py::test_a_compiled_network_is_fused',
    'tests/layers/test_residual_tail.py::test_traced_by_fx_is_bitwise_equal_and_scripts',
    'tests/models/test_flag.py::test_names_and_modules_shadow_nothing_in_timm', 'tests/models/test_cifar.py',
    'tests/placement/test_record.py', 'tests/placement/test_spec.py', 'tests/placement/test_surgery.py',
    'tests/weights/test_fetching.py', 'tests/weights/test_pretrained.py', 'tests/sharing/test_push.py',
    'tests/detection/test_backbone.py', 'tests/detection/test_plugin_layers.py',
]
TRAINING = ['tests/training/test_checkpoint.py', 'tests/training/test_evaluation.py', 'tests/training/test_records.py']
NEWEST = [
    'tests/interop/test_onnx.py', 'tests/models/test_flag.py::test_the_table_says_what_the_installed_timm_builds',
    'tests/models/test_flag.py::test_the_tests_know_every_structure',
    'tests/models/test_contract.py::test_compiles_without_graph_breaks']


def main() -> int:
    """Make each environment, run the tests in it, and write the page. Returns 1 if a test fails."""
    rows, failed = [], False
    for name in PYTHONS:
        with tempfile.TemporaryDirectory(prefix='.venv-', dir=ROOT) as folder:
            python, old_timm = install(name, Path(folder))
            runs = [('core and detection', CORE, old_timm), ('training', TRAINING, None)]
            if name == 'newest':
                runs = [('core, detection, training and export', CORE + TRAINING + NEWEST, None)]
            for what, tests, overlay in runs:
                print(f'{name} releases: {what}', flush=True)
                code, result = run(python, tests, overlay)
                failed |= code != 0
                rows.append((name, what, result, versions(python, overlay)))
    if not failed:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), encoding='utf-8')
    return int(failed)


def install(name: str, folder: Path) -> tuple[Path, Path]:
    """Create an environment in a folder.

    Returns its interpreter and, for the oldest releases, a folder with timm's floor by itself, since [train] asks for
    a newer timm.
    """
    uv = shutil.which('uv', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}') or 'uv'
    python, old_timm = folder / 'bin' / 'python', folder / 'timm'
    subprocess.run(
        [uv, 'venv', '--quiet', '--allow-existing', '--python', interpreter(PYTHONS[name]), folder], check=True)
    # Compiling here keeps warnings of invalid escape sequences out of the first test that imports such a module.
    options: list[str | Path] = [uv, 'pip', 'install', '--quiet', '--compile-bytecode', '--python', python]
    resolution = ['--resolution', 'lowest-direct'] if name == 'oldest' else []
    subprocess.run([*options, *resolution, '--editable', f'.[{EXTRAS[name]}]'], cwd=ROOT, check=True)
    if name == 'oldest':
        floor = re.search(r'^ +"timm>=([\d.]+),', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'), re.MULTILINE)
        assert floor is not None
        subprocess.run([*options, '--no-deps', '--target', old_timm, f'timm=={floor[1]}'], check=True)
    return python, old_timm


def interpreter(version: str) -> str:
    """A Python of that version: a command, one of pyenv or uv, or else the Python that runs this tool."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'), 'versions')
    for path in (shutil.which(f'python{version}'), *sorted(pyenv.glob(f'{version}.*/bin/python{version}'))):
        if path and subprocess.run([path, '--version'], capture_output=True, check=False).returncode == 0:
            return str(path)
    found = subprocess.run(['uv', 'python', 'find', version], capture_output=True, text=True, check=False) \
        if shutil.which('uv') else None
    if found and found.returncode == 0:
        return found.stdout.strip()
    print(f'no Python {version} was found; {platform.python_version()} is used instead', flush=True)
    return sys.executable


def run(python: Path, tests: list[str], overlay: Path | None) -> tuple[int, str]:
    """Run pytest; returns the exit code and the last line of the output."""
    environment = {**os.environ, 'PYTHONPATH': str(overlay or '')}
    process = subprocess.Popen(
        [python, '-m', 'pytest', '-q', '-n', '2', '-m', 'not slow', '-p', 'no:cacheprovider', *tests],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ''
    for line in process.stdout:
        print(line, end='', flush=True)
        last = line.strip() or last
    return process.wait(), re.sub(r' in .*', '', last)


def versions(python: Path, overlay: Path | None) -> dict[str, str]:
    """Releases of the listed packages in an environment, by name."""
    code = ('import importlib.metadata as m, json, platform; found = {"Python": platform.python_version()}\n'
            f'for name in {LISTED!r}:\n'
            '    try: found[name] = m.version(name)\n'
            '    except m.PackageNotFoundError: pass\n'
            'print(json.dumps(found))')
    environment = {**os.environ, 'PYTHONPATH': str(overlay or '')}
    answer = subprocess.run([python, '-c', code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def page(rows: list[tuple[str, str, str, dict[str, str]]]) -> str:
    """The page in Markdown: a column for each run, a row for each package."""
    names = ['Python', *(name for name in LISTED if any(name in found for *_, found in rows))]
    lines = [
        '# Tested versions', '',
        'This page is written by `make floors`, which installs the oldest and the newest releases that',
        '`pyproject.toml` admits, and runs a selection of the tests with each. `make test` runs the quick suite with',
        'what pip finds. `[train]` needs a newer timm than the rest of the package, hence the column of its own.', '',
        f'Run on {platform.system()}, {platform.machine()}, without a GPU.', '',
        '| | ' + ' | '.join(f'{name}: {what}' for name, what, *_ in rows) + ' |', '|---' * (len(rows) + 1) + '|',
        *(f'| {name} | ' + ' | '.join(found.get(name, '') for *_, found in rows) + ' |' for name in names),
        '| result | ' + ' | '.join(result for *_, result, _ in rows) + ' |', '']
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())

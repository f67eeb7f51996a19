"""What is released: an sdist and a wheel, which work in an empty environment."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from timm_se_plugin import __version__

ROOT = Path(__file__).parents[1]
NAMED = 'faster-rcnn_se-r50_fpn_1x_coco.py'
CODE = f"""
import importlib.metadata, importlib.resources, timm, timm_se_plugin
package = importlib.resources.files(timm_se_plugin)
print(timm_se_plugin.__version__, importlib.metadata.version('timm-se-plugin'))
print((package / 'py.typed').is_file(), (package / 'mmdet_configs' / '{NAMED}').is_file())
print(type(timm.create_model('se_resnet18_plugin')).__name__, package)
"""


def output(*words, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    return subprocess.run(words, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dist')
    output(sys.executable, '-m', 'uv', 'build', '--quiet', '--out-dir', folder, cwd=ROOT)
    return folder


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_sdist_what_builds_and_tests_it(dist):
    wheel, = dist.glob('*.whl')
    assert wheel.name == f'timm_se_plugin-{__version__}-py3-none-any.whl'
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'timm_se.py', 'timm_se_plugin/py.typed', f'timm_se_plugin/mmdet_configs/{NAMED}',
            'timm_se_plugin/models/timm_resnets.json', 'timm_se_plugin/sharing/model_card.md',
            'timm_se_plugin/analysis/report.html', 'timm_se_plugin/training/recipes/flowers.yaml'} <= names
    assert {name.split('/')[0] for name in names} == {
        'timm_se.py', 'timm_se_plugin', f'timm_se_plugin-{__version__}.dist-info'}
    sdist, = dist.glob('*.tar.gz')
    names = {name.partition('/')[2] for name in tarfile.open(sdist).getnames()}
    assert {'CHANGELOG.md', 'CITATION.cff', 'LICENSE', 'Makefile', 'mkdocs.yml', 'docs/index.md', 'tests/test_wheel.py',
            'docs/notebooks/reading_gates.ipynb', f'mmdet_configs/{NAMED}'} <= names
    output(sys.executable, '-m', 'twine', 'check', '--strict', wheel, sdist, cwd=dist)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_works_in_an_empty_environment(dist, tmp_path):
    uv = (sys.executable, '-m', 'uv')
    output(*uv, 'venv', '--quiet', '--python', sys.executable, 'empty', cwd=tmp_path)
    binaries = tmp_path / 'empty' / ('Scripts' if os.name == 'nt' else 'bin')
    output(*uv, 'pip', 'install', '--quiet', '--python', binaries / 'python', *dist.glob('*.whl'), cwd=tmp_path)
    assert output(binaries / 'timm-se', '--version', cwd=tmp_path) == f'timm-se {__version__}\n'
    assert 'se_resnet50_plugin ' in output(binaries / 'timm-se', 'models', 'se_resnet50*', cwd=tmp_path)
    versions, files, network = output(binaries / 'python', '-c', CODE, cwd=tmp_path).splitlines()
    assert versions.split() == [__version__, __version__]
    assert files == 'True True'
    assert network.startswith('FusedStemResNet ')
    assert str(tmp_path / 'empty') in network


@pytest.mark.slow
def test_a_configuration_has_a_base_of_the_wheel(dist, tmp_path):
    pytest.importorskip('mmdet', reason='needs the [mmdet] or the [onedl] extra')
    zipfile.ZipFile(next(dist.glob('*.whl'))).extractall(tmp_path / 'installed')
    (tmp_path / 'mine.py').write_text("_base_ = 'timm_se_plugin::retinanet_se-r50_fpn_1x_coco.py'\n", encoding='utf-8')
    code = ("import sys; sys.path.insert(0, 'installed')\n"
            'from timm_se_plugin.detection.configs import read_config, shipped_config\n'
            "print(shipped_config('retinanet_se-r50_fpn_1x_coco'), read_config('mine.py').model.backbone.attn)")
    path, attn = output(sys.executable, '-W', 'ignore', '-c', code, cwd=tmp_path).split()
    assert (Path(path).relative_to(tmp_path).as_posix(), attn) == (
        'installed/timm_se_plugin/mmdet_configs/retinanet_se-r50_fpn_1x_coco.py', 'se')

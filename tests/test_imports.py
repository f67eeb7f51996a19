"""What a module needs to be imported: the core dependencies alone, outside of the rooms that an extra is for."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from parity import IS_OLD_TIMM

import timm_se_plugin

EXTRAS = ('cv2', 'datasets', 'matplotlib', 'mmcv', 'mmdet', 'mmengine', 'onnx', 'onnxruntime', 'onnxscript', 'pandas',
          'pyarrow', 'pycocotools', 'scipy', 'sklearn', 'tensorboard', 'torch_pruning', 'webdataset')
ROOMS = {
    'timm_se_plugin.boxes': 'export',
    'timm_se_plugin.detection': 'mmdet',
    'timm_se_plugin.layers.kernels.passes': 'triton',   # which torch brings where there are kernels to run
}
if IS_OLD_TIMM:
    ROOMS |= dict.fromkeys((
        'timm_se_plugin.training', 'timm_se_plugin.analysis',
        *(f'timm_se_plugin.commands.{name}' for name in ('train', 'evaluate', 'analyze'))), 'train')

CODE = """
import importlib, json, sys
names, missing = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(missing))   # what is None there cannot be imported
errors = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        errors[name] = str(error)
print(json.dumps(errors))
"""


def modules():
    found = (module.name for module in pkgutil.walk_packages(
        timm_se_plugin.__path__, 'timm_se_plugin.', onerror=lambda name: None))
    return sorted(name for name in found if not name.endswith('__main__'))


@pytest.fixture(scope='module')
def errors():
    run = subprocess.run([sys.executable, '-c', CODE, json.dumps([modules(), EXTRAS])], cwd=Path(__file__).parents[1],
                         capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_every_module_outside_a_room_of_an_extra_is_imported_with_the_core_dependencies(errors):
    assert {name: error for name, error in errors.items() if not name.startswith(tuple(ROOMS))} == {}


def test_a_room_of_an_extra_says_what_to_install(errors):
    assert 'pip install' in errors['timm_se_plugin.detection']
    assert 'timm-se-plugin[export]' in errors['timm_se_plugin.boxes']

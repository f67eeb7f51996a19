"""What users saved with earlier commits: it loads, and computes what it did.

The folders of ``saved/`` were written by the commit d166b23: classifiers by ``write_model``, a training's best
checkpoint, and a detector by ``write_detector`` and as MMEngine's checkpoint. Each has the outputs of that commit in
``expected.npz``.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from parity import needs_new_timm
from safetensors.torch import load_file

import timm_se_plugin

SAVED = Path(__file__).parent / 'saved'
CLASSIFIERS = sorted(path.name for path in SAVED.iterdir() if path.name not in ('detector', 'training_run'))


def outputs(name):
    """What the commit that saved a folder computed."""
    return {key: torch.from_numpy(value) for key, value in np.load(SAVED / name / 'expected.npz').items()}


def images(model):
    """The images whose logits are in ``expected.npz``."""
    side = 32 if model.pretrained_cfg['input_size'][1] == 32 else 64
    return torch.randn(2, model.in_chans, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_saved_classifier_gives_the_logits_of_the_commit_that_saved_it(name):
    model = timm.create_model(f'local-dir:{SAVED / name}', pretrained=True).eval()
    expected = outputs(name)['logits']
    with torch.no_grad():
        torch.testing.assert_close(model(images(model)), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    saved = load_file(SAVED / name / 'model.safetensors')
    assert model.state_dict().keys() == saved.keys()


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_saved_classifier_says_which_attention_it_has(name):
    import json
    config = json.loads((SAVED / name / 'config.json').read_text())
    model = timm.create_model(f'local-dir:{SAVED / name}', pretrained=True)
    attn = timm_se_plugin.AttentionSpec.of(model)
    saved = config['timm_se_plugin']['attention']
    assert (attn and {key: list(value) if isinstance(value, tuple) else value
                      for key, value in attn.to_kwargs().items()}) == saved


def test_saved_training_run_is_shared():
    written = timm_se_plugin.push_to_hub(SAVED / 'training_run', 'me/digits', dry_run=True)
    assert {'model.safetensors', 'config.json', 'README.md'} <= written.files.keys()


@needs_new_timm
def test_saved_training_run_is_evaluated(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits, summary

    from timm_se_plugin.training import evaluate_classifier, parse_evaluation
    run = shutil.copytree(SAVED / 'training_run', tmp_path / 'run')
    found = evaluate_classifier(parse_evaluation([
        '--checkpoint', str(run / 'model_best.pth.tar'), '--data-dir', str(save_digits(tmp_path / 'digits')),
        '--device', 'cpu', '--workers', '0']))
    best = max(summary(run), key=lambda row: float(row['val_top1']))
    assert found['top1'] == float(best['val_top1'])


@pytest.mark.mmdet
@pytest.mark.skipif(importlib.util.find_spec('mmdet') is None, reason='needs the [mmdet] or the [onedl] extra')
@pytest.mark.parametrize('weights', ['model.safetensors', 'epoch_1.pth'])
def test_saved_detector_finds_the_boxes_of_the_commit_that_saved_it(weights):
    from timm_se_plugin.detection.hub import fetch_detector
    from timm_se_plugin.detection.inference import load_detector

    from mmdet.apis import inference_detector  # isort: skip

    config, _ = fetch_detector(f"local-dir:{SAVED / 'detector'}")
    model = load_detector(config, str(SAVED / 'detector' / weights))
    picture = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    found, expected = inference_detector(model, picture).pred_instances, outputs('detector')
    assert torch.equal(found.labels, expected['labels'])
    torch.testing.assert_close(found.bboxes, expected['boxes'], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.scores, expected['scores'], rtol=1e-4, atol=1e-5)

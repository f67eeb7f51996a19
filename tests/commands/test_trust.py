"""What a command says and writes when something is not as its user thinks."""

import json

import pytest
import timm
import torch
from digit_runs import TINY

from timm_se_plugin.commands import main
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.weights.folders import write_model


@pytest.fixture(scope='module')
def wide(digits, tmp_path_factory):
    """Folder of a run whose attention has timm's widths."""
    folder = tmp_path_factory.mktemp('wide')
    main(['train', *TINY, '--epochs', '2', '--model-kwargs', 'attn_rd_divisor=8', '--data-dir', str(digits),
          '--val-split', 'val', '--output', str(folder), '--experiment', 'run'])
    return folder / 'run'


def test_what_was_trained_from_scratch_has_no_tag_license_or_paper_of_others(wide, printed, hub):
    printed('push', wide, 'user/digits', '--license', 'mit')
    config = json.loads(hub.repos['user/digits'].files('main')['config.json'])
    assert not {'tag', 'paper_ids', 'origin_url'} & config['pretrained_cfg'].keys()
    assert config['license'] == config['pretrained_cfg']['license'] == 'mit'


def test_the_tag_of_published_weights_stays_with_them(tmp_path):
    plain = timm.create_model('test_resnet_plugin')
    torch.save(plain.state_dict(), tmp_path / 'weights.pth')
    model = timm.create_model('test_resnet_plugin', pretrained=True,
                              pretrained_cfg_overlay=dict(file=str(tmp_path / 'weights.pth')))
    write_model(model, tmp_path / 'saved')
    assert json.loads((tmp_path / 'saved' / 'config.json').read_text())['pretrained_cfg']['tag'] == 'r160_in1k'


def test_a_card_names_the_classes_and_counts_epochs_from_one(wide, hub, printed):
    printed('push', wide, 'user/digits')
    card = hub.repos['user/digits'].files('main')['README.md'].decode()
    assert '- **Classes**: 10: 0, 1, 2' in card
    best = read_checkpoint(wide / 'model_best.pth.tar')['epoch'] + 1
    assert f'| {best} of 2 |' in card


def test_convert_takes_attention_and_names_of_classes_from_a_run(wide, printed, tmp_path):
    printed('convert', wide / 'last.pth.tar', 'se_test_resnet_plugin', tmp_path / 'same')
    config = json.loads((tmp_path / 'same' / 'config.json').read_text())
    assert config['label_names'] == [str(i) for i in range(10)]
    assert config['model_args']['attn_rd_divisor'] == 8
    with pytest.raises(SystemExit, match=r'do not fit se_test_resnet_plugin: attn_rd_divisor=1 \(the weights have 8\)'):
        main(['convert', str(wide / 'last.pth.tar'), 'se_test_resnet_plugin', str(tmp_path / 'other'),
              '--model-kwargs', 'attn_rd_divisor=1'])
    printed('convert', f'local-dir:{tmp_path / "same"}', 'se_test_resnet_plugin', tmp_path / 'again', '--model-kwargs',
            'attn_rd_divisor=8')
    assert json.loads((tmp_path / 'again' / 'config.json').read_text())['label_names'] == config['label_names']


@pytest.mark.parametrize('words', [('sites', 'resnet18', '--model-kwargs', 'attn=se'),
                                   ('train', '--model', 'resnet18', '--model-kwargs', 'attn=se')])
def test_timms_own_network_names_the_one_that_takes_attention(words, digits):
    data = ('--data-dir', str(digits), '--val-split', 'val', '--device', 'cpu') if words[0] == 'train' else ()
    with pytest.raises(SystemExit, match="resnet18 is timm's own network and takes no attn=; use resnet18_plugin"):
        main([*words, *data])


def test_a_push_without_a_network_is_a_message(wide, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(SystemExit, match=r'user/digits is not shared, since the Hub cannot be reached: .*refused'):
        main(['push', str(wide), 'user/digits'])

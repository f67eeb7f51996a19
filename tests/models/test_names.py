"""Networks by their names, and what is said where their weights cannot be had."""

import pytest
from huggingface_hub import constants

from timm_se_plugin.commands import main
from timm_se_plugin.models.names import create_network, trained_model


@pytest.mark.parametrize('name', ['seresnet50.a2_in1k', 'se_resnet18_plugin.from_a1_in1k'])
def test_published_weights_that_cannot_be_fetched_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    said = f'the weights of {name} are not in the cache, and offline mode is on; unset HF_HUB_OFFLINE to download them'
    for load in (trained_model, lambda name: create_network(name, pretrained=True)):
        with pytest.raises(ConnectionError, match=said):
            load(name)


def test_a_command_says_so_too(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(SystemExit, match=r'the weights of seresnet50.a2_in1k are not in the cache'):
        main(['predict', str(tmp_path), '--model', 'seresnet50.a2_in1k'])

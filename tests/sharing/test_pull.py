"""Models that are fetched into a folder."""

import io
import pickle

import pytest
import timm
import torch
from hub_server import Repo

from timm_se_plugin.sharing import pull_from_hub
from timm_se_plugin.weights.folders import write_model


def test_a_full_disk_leaves_no_part_of_a_model(tmp_path):
    resource = pytest.importorskip('resource', reason='limits of files are those of Unix')
    write_model(timm.create_model('se_test_resnet_plugin', num_classes=3), tmp_path / 'saved')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # config.json fits, and the weights do not
    try:
        with pytest.raises(OSError, match='File too large'):
            pull_from_hub(f'local-dir:{tmp_path / "saved"}', tmp_path / 'pulled')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / 'pulled').iterdir())
    files = pull_from_hub(f'local-dir:{tmp_path / "saved"}', tmp_path / 'pulled')
    assert {path.name for path in (tmp_path / 'pulled').iterdir()} == set(files) == {'config.json', 'model.safetensors'}


def test_a_repository_with_pickled_weights_alone_is_pulled_and_code_in_them_is_not_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = timm.create_model('se_test_resnet_plugin', num_classes=3)
    write_model(model, 'saved')
    config, file = (tmp_path / 'saved' / 'config.json').read_bytes(), io.BytesIO()
    torch.save(dict(model.state_dict()), file)

    class Attack:
        def __reduce__(self):
            return exec, ("open('attacked', 'w')",)
    for name, files in (('old', {'pytorch_model.bin': file.getvalue()}), ('none', {}),
                        ('attack', {'pytorch_model.bin': pickle.dumps(Attack())})):
        hub.repos[f'me/{name}'] = Repo()
        hub.repos[f'me/{name}'].commit('main', {'config.json': config, **files})
    assert set(pull_from_hub('hf-hub:me/old', 'pulled')) == {'config.json', 'pytorch_model.bin'}
    pulled = timm.create_model('local-dir:pulled', pretrained=True).state_dict()
    assert all(torch.equal(value, pulled[key]) for key, value in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r'me/none has no file model\.safetensors'):
        pull_from_hub('hf-hub:me/none', 'other')
    with pytest.raises(ValueError, match='not a file of weights only'):
        pull_from_hub('hf-hub:me/attack', 'other')
    assert not (tmp_path / 'other').exists()
    assert not (tmp_path / 'attacked').exists()

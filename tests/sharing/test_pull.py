"""Models that are fetched into a folder."""

import pytest
import timm

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

import sys

import pytest
import timm


@pytest.mark.parametrize('version', ['1.0.26', '1.0.30', '0.9.16'])
def test_an_older_timm_is_refused_with_what_to_do(version, monkeypatch):
    for name in [name for name in sys.modules if name.startswith('timm_se_plugin.training')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(timm, '__version__', version)
    message = rf'training needs timm 1\.0\.31 or later, and timm {version} is installed; pip install .*timm>=1\.0\.31'
    with pytest.raises(ImportError, match=message):
        import timm_se_plugin.training  # noqa: F401


import importlib.util
import json
import os

import pytest
import torch

os.environ['HF_HUB_OFFLINE'] = '1'  # a test that would need the network fails at once

_operators = []  # that were ever registered, kept alive


def _register_and_keep(operator, name, register=torch.jit._builtins._register_builtin):
    """TorchScript knows operators by ``id``. PyTorch replaces those of torch.ao when it is imported, without removing
    the old ids from the table: an attribute that gets such an id is then refused, "builtin cannot be used as a value".
    """
    _operators.append(operator)
    register(operator, name)


torch.jit._builtins._register_builtin = _register_and_keep


def pytest_configure():
    """yapf, which mmengine imports, writes a cache when it is first imported. This runs before pytest starts its
    workers, two of which would write that file at once, and read half of it.
    """
    if importlib.util.find_spec('yapf'):
        importlib.import_module('yapf')


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback that huggingface_hub talks to, with an empty cache."""
    import hub_server
    from huggingface_hub import constants, file_download, utils

    with hub_server.hub() as server:
        changed = {
            'ENDPOINT': server.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': server.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HUB_CACHE': str(tmp_path / 'hub-cache'), 'HF_TOKEN_PATH': str(tmp_path / 'no-token'),
            'HF_HUB_OFFLINE': False, 'HF_HUB_DISABLE_XET': True, 'HF_HUB_DISABLE_TELEMETRY': True}
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value, raising=False)  # huggingface-hub 0.30 has not all of them
        # The module that downloads has its own copy of this name in huggingface-hub 0.30.
        name = 'HUGGINGFACE_CO_URL_TEMPLATE'
        monkeypatch.setattr(file_download, name, changed[name], raising=False)
        for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
            monkeypatch.delenv(name, raising=False)
        # A session of huggingface-hub 0 read the mode when it was made.
        getattr(utils, 'reset_sessions', lambda: None)()
        yield server
        getattr(utils, 'reset_sessions', lambda: None)()


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder of a few real digits."""
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits
    return save_digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture
def printed(capsys):
    """A function that runs a command and returns the result that it prints as JSON."""
    from timm_se_plugin.commands import main

    def run(*words: str):
        capsys.readouterr()
        main([*map(str, words), '--json'])
        return json.loads(capsys.readouterr().out)
    return run


@pytest.fixture(scope='session', autouse=True)
def rules_of_sizes():
    """Tests compute small maps, which ``attn_fused='auto'`` leaves to the modules, as if they were large."""
    from timm_se_plugin.layers import residual_tail
    rules = {'is_worthwhile': lambda x: True, '_WORTH_CHECKING': 0, '_WORTH_GATING': 0}
    originals = {name: getattr(residual_tail, name) for name in rules}
    with pytest.MonkeyPatch.context() as patch:
        for name, rule in rules.items():
            patch.setattr(residual_tail, name, rule)
        yield residual_tail, originals


@pytest.fixture(autouse=True)
def _sizes_matter(request, monkeypatch, rules_of_sizes):
    if 'sizes_matter' in request.keywords:
        module, originals = rules_of_sizes
        for name, rule in originals.items():
            monkeypatch.setattr(module, name, rule)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


torch.set_num_threads(1)  # the suite runs one process per core

import json

import pytest
from digit_runs import save_digits

from timm_se_plugin.commands import main


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder of a few real digits."""
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    return save_digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture
def printed(capsys):
    """A function that runs a command and returns the result that it prints as JSON."""
    def run(*words: str):
        capsys.readouterr()
        main([*map(str, words), '--json'])
        return json.loads(capsys.readouterr().out)
    return run

import json

import pytest

from timm_se_plugin.commands import main


@pytest.fixture
def printed(capsys):
    """A function that runs a command and returns the result that it prints as JSON."""
    def run(*words: str):
        capsys.readouterr()
        main([*map(str, words), '--json'])
        return json.loads(capsys.readouterr().out)
    return run

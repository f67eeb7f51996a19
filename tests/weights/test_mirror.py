"""A second server, written by others: olah serves a folder under git, and the model in it comes back.

It lives in an environment of its own: ``python -m venv olah; olah/bin/pip install olah opentelemetry-api``, then
``TIMM_SE_OLAH=olah/bin/olah-cli``.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
import timm
import torch
from hub_server import in_another_process
from parity import images, randomised

from timm_se_plugin.weights.folders import write_model

OLAH = os.environ.get('TIMM_SE_OLAH') or shutil.which('olah-cli')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OLAH or not shutil.which('git'), reason='needs git, and olah-cli by TIMM_SE_OLAH')]


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.fixture
def mirror(tmp_path):
    """olah's address and the folder under git that it serves as me/tiny."""
    folder, port = tmp_path / 'mirror' / 'models' / 'me' / 'tiny', free_port()
    folder.mkdir(parents=True)
    (tmp_path / 'olah.toml').write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{tmp_path / "repos"}"\n'
        f'mirrors-path = ["{tmp_path / "mirror"}"]\n[accessibility]\noffline = true\n')
    model = randomised(timm.create_model('se_test_resnet_plugin', num_classes=5, attn_gate='tanh')).eval()
    write_model(model, folder)
    (folder / 'README.md').write_text('---\nlibrary_name: timm\n---\n')
    for command in (['init', '-q', '-b', 'main'], ['add', '.'], ['commit', '-q', '-m', 'A model']):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(folder), *command], check=True)
    with (tmp_path / 'log').open('wb') as log:
        server = subprocess.Popen(
            [OLAH, '--config', str(tmp_path / 'olah.toml'), '--log-path', str(tmp_path / 'logs')],
            stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    url = f'http://127.0.0.1:{port}'
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f'{url}/me/tiny/resolve/main/config.json', timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / 'log').read_text()
                time.sleep(0.5)
        yield url, model
    finally:
        server.terminate()
        server.wait(20)


def test_an_independent_server_gives_the_model_back(mirror, tmp_path):
    url, model = mirror
    code = """
import sys, torch, timm, timm_se_plugin
model = timm.create_model('hf-hub:me/tiny', pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[1])), sys.argv[2])
"""
    x = images(2, 3, 64, 64, dtype=torch.float32)
    torch.save(x, tmp_path / 'x.pt')
    in_another_process(url, tmp_path / 'home', code, tmp_path / 'x.pt', tmp_path / 'y.pt')
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / 'y.pt'), model(x))

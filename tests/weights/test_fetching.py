"""What can go wrong between the Hub and a model, and what a hostile repository tries."""

import json
import os
import pickle
import time

import pytest
import timm
import torch
from hub_server import Repo
from huggingface_hub import __version__ as hub_version
from huggingface_hub import constants, file_download, utils
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from parity import images, randomised
from safetensors.torch import save

from timm_se_plugin.files.hub_files import fetch, read_config_json, tensor_shapes
from timm_se_plugin.weights.folders import write_model

retries = pytest.mark.skipif(int(hub_version.split('.')[0]) < 2, reason='huggingface-hub asks again from 2.0')
WEIGHTS = 'GET /me/a/resolve/main/model.safetensors'


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would wait; it doesn't."""
    seconds = []
    monkeypatch.setattr(time, 'sleep', seconds.append)
    return seconds


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A model, and the files that a push of it writes."""
    model = randomised(timm.create_model('se_test_resnet_plugin', num_classes=5)).eval()
    folder = tmp_path_factory.mktemp('written')
    write_model(model, folder)
    return model, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model(hub, written):
    """The model in the repository me/a."""
    hub.repos['me/a'] = Repo()
    hub.repos['me/a'].commit('main', written[1])
    return written[0]


def load():
    return timm.create_model('hf-hub:me/a', pretrained=True).eval()


@torch.no_grad()
def logits(model):
    return model(images(2, 3, 64, 64, dtype=torch.float32))


def assert_loads(model):
    assert torch.equal(logits(load()), logits(model))


@retries
@pytest.mark.parametrize(('fault', 'waited'), [
    (dict(status=429, headers={'Retry-After': '7'}), 8),  # the client adds one
    (dict(status=408), 1),
    (dict(cut=50_000), 1),
    (dict(cut=50_000, times=3), 1),
])
def test_a_passing_fault_of_the_download_is_waited_out(hub, model, waits, fault, waited):
    hub.fail(WEIGHTS, **fault)
    assert_loads(model)
    assert waits[0] == waited


@retries
@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_passing_fault_of_the_question_is_waited_out(hub, model, waits, status):
    hub.fail('HEAD /me/a/resolve/main/model.safetensors', status=status)
    assert_loads(model)


@retries
def test_a_slow_answer_is_asked_for_again(hub, model, waits, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.3)
    hub.fail(WEIGHTS, delay=1.0)
    assert_loads(model)
    assert sum(request == WEIGHTS for request in hub.requests) == 2


@pytest.mark.parametrize(('fault', 'error', 'message'), [
    (dict(status=401), HfHubHTTPError, '401'),
    (dict(status=403), HfHubHTTPError, '403'),
    (dict(status=500), HfHubHTTPError, '500'),
    (dict(truncate=70_000), OSError, 'should be of size .* but has size 70000'),
    (dict(corrupt=True), ValueError, 'model.safetensors of me/a is corrupted: its SHA-256 is .*, not .*removed'),
])
def test_a_lasting_fault_of_the_download_is_one_clear_error_and_leaves_nothing_behind(
        hub, model, waits, fault, error, message):
    hub.fail(WEIGHTS, times=1, **fault)
    with pytest.raises(error, match=message):
        load()
    assert_loads(model)


@pytest.mark.parametrize(('status', 'message'), [(401, '401'), (403, '403'), (404, '404')])
def test_a_refusal_is_not_called_an_outage(hub, model, waits, status, message):
    hub.fail('HEAD /me/a/resolve/main/model.safetensors', times=9, status=status)
    with pytest.raises(HfHubHTTPError, match=message):
        fetch('me/a', 'model.safetensors')


@pytest.mark.parametrize('status', [500, 503])
def test_an_outage_is_called_one(hub, model, waits, status):
    hub.fail('HEAD /me/a/resolve/main/model.safetensors', times=99, status=status)
    with pytest.raises(ConnectionError, match=rf'not in the cache, and the Hub could not be reached: .*{status}'):
        load()
    hub.faults.clear()
    assert_loads(model)


def test_a_hub_that_is_gone_is_called_an_outage(hub, model, waits, monkeypatch):
    for module in (constants, file_download):
        monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', 'http://127.0.0.1:1/{repo_id}/{revision}/{filename}',
                            raising=False)
    with pytest.raises(ConnectionError, match=r'could not be reached: .*refused'):
        fetch('me/a', 'model.safetensors')
    with pytest.raises(LocalEntryNotFoundError, match='check your connection'):  # timm's own question, for config.json
        load()


def test_what_is_cached_loads_through_an_outage_and_offline(hub, model, waits, monkeypatch):
    assert_loads(model)
    hub.fail('.', times=99, status=503)
    assert_loads(model)
    hub.faults.clear()
    hub.requests.clear()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    getattr(utils, 'reset_sessions', lambda: None)()  # a session of huggingface-hub 0 read the mode when it was made
    assert_loads(model)
    assert hub.requests == []
    with pytest.raises(FileNotFoundError, match=r'config.json of me/b is not in the cache, and offline mode is on'):
        read_config_json('hf-hub:me/b')


def test_a_wrong_etag_does_not_pass_for_another_file(hub, model):
    hub.fail('HEAD /me/a/resolve/main/model.safetensors', etag='0' * 64)
    with pytest.raises(ValueError, match=r'is corrupted: its SHA-256 is \w{64}, not 0{64}'):
        load()
    assert_loads(model)


def test_a_file_that_rots_in_the_cache_is_found_out(hub, model):
    path = fetch('me/a', 'model.safetensors').resolve()
    data = path.read_bytes()
    for spoiled in (data[:-1000], data[:2000] + bytes([data[2000] ^ 255]) + data[2001:], b''):
        path.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r'is corrupted: .*removed from the cache; try again'):
            load()
        assert_loads(model)


def test_a_missing_file_repository_or_revision_is_named(hub, model):
    with pytest.raises(FileNotFoundError, match=r'me/a has no file gone.json'):
        fetch('me/a', 'gone.json')
    for repo in ('me/none', 'me/a@none'):
        with pytest.raises(HfHubHTTPError, match='404'):
            fetch(repo, 'config.json')


# A hostile repository.

def test_a_cache_of_ones_own_is_the_only_one_that_is_written(hub, model, tmp_path, monkeypatch):
    default = tmp_path / 'default'
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(default))
    loaded = timm.create_model('hf-hub:me/a', pretrained=True, cache_dir=tmp_path / 'own').eval()
    assert torch.equal(logits(loaded), logits(model))
    assert hub.requests.count(WEIGHTS) == 1
    assert list((tmp_path / 'own').rglob('model.safetensors'))
    # timm 1.0.26 itself reads config.json by way of the default cache.
    assert not list(default.rglob('model.safetensors'))


def put(hub, **files):
    names = {'config': 'config.json', 'weights': 'model.safetensors', 'pickle': 'pytorch_model.bin'}
    kept = dict(hub.repos['me/a'].files('main'))
    if 'pickle' in files:
        kept.pop('model.safetensors', None)
    hub.repos['me/a'].commits.clear()
    hub.repos['me/a'].commit('main', {**kept, **{names[key]: data for key, data in files.items()}})


def config_of(hub):
    return json.loads(hub.repos['me/a'].files('main')['config.json'])


class Attack:
    def __reduce__(self):
        return os.system, ('touch attacked',)


def test_a_pickle_that_would_run_code_is_refused(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import io
    whole = io.BytesIO()
    torch.save({'conv1.weight': torch.zeros(1), 'attack': Attack()}, whole)
    for data in (pickle.dumps(Attack(), protocol=2), whole.getvalue()):
        put(hub, pickle=data)
        with pytest.raises(RuntimeError, match=r'weights_only=True blocked|Unsupported'):
            load()
    assert not (tmp_path / 'attacked').exists()


def header(length=None, **tensors):
    text = json.dumps(tensors).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text


@pytest.mark.parametrize('data', [
    header(x={'dtype': 'F32', 'shape': [10**9, 10**6], 'data_offsets': [0, 4 * 10**15]}),  # more than there is
    header(x={'dtype': 'F32', 'shape': [10], 'data_offsets': [0, 4]}) + bytes(4),  # a shape that isn't the size
    header(10**15),
    header(10**12, x={'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}) + bytes(4),
    header(x={'dtype': 'F32', 'shape': [1], 'data_offsets': [-4, 0]}) + bytes(4),
    b'', b'PK\3\4 something else', b'{}',
])
def test_a_safetensors_header_that_lies_is_refused(hub, model, tmp_path, data):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'a.safetensors is truncated or corrupted \(.*\); delete'):
        tensor_shapes(path)
    put(hub, weights=data)
    with pytest.raises(ValueError, match='truncated or corrupted'):
        load()


def test_shapes_are_compared_before_memory_is_taken(hub, model):
    config = config_of(hub)
    config['num_classes'] = config['model_args']['num_classes'] = 10**11  # 200 TB
    put(hub, config=json.dumps(config).encode())
    with pytest.raises(ValueError, match=r'fc.weight \(5, \d+\) instead of \(100000000000, \d+\)'):
        load()
    state = model.state_dict()
    config = config_of(hub)
    config['num_classes'] = config['model_args']['num_classes'] = 5
    put(hub, config=json.dumps(config).encode(), weights=save({**state, 'bn1.bias': torch.zeros(65)}))
    with pytest.raises(ValueError, match=r'of another shape bn1.bias \(65,\) instead of \(\d+,\)'):
        load()


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(architecture='os.system'), RuntimeError, r'Unknown model \(os.system\)'),
    (dict(architecture='../../resnet18'), RuntimeError, r'Unknown model'),
    (dict(model_args={'attn_gate': 'exec'}), ValueError, "attn_gate='exec' is not one of"),
    (dict(model_args={'attn_hook': 'x'}), ValueError, 'built with attn_hook, an option that this version'),
    (dict(model_args={'attn_rd_ratio': 16}), ValueError, 'did you mean 1/16'),
    (dict(model_args={'block': 'os.system'}), ValueError, 'arguments that me/a saved do not build se_test'),
    (dict(model_args={'unknown': 1}), TypeError, 'unknown'),
    (dict(pretrained_cfg={'unknown': 1}), TypeError, 'unknown'),
])
def test_a_configuration_of_something_unknown_is_refused(hub, model, change, error, message):
    config = config_of(hub)
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    put(hub, config=json.dumps(config).encode())
    with pytest.raises(error, match=message):
        load()


@pytest.mark.parametrize('name', [
    '../../outside.safetensors', '/etc/passwd', 'a/../../../outside.safetensors', r'..\outside', r'C:\outside'])
def test_a_file_name_that_leaves_the_repository_is_refused_before_the_hub_is_asked(hub, model, tmp_path, name):
    config = config_of(hub)
    config['pretrained_cfg']['hf_hub_filename'] = name
    put(hub, config=json.dumps(config).encode())
    hub.repos['me/a'].files('main')[name] = b'x'
    with pytest.raises(ValueError, match='which is not inside the repository'):
        load()
    with pytest.raises(ValueError, match='which is not inside the repository'):
        fetch('me/a', name)
    assert not any('outside' in request or 'passwd' in request for request in hub.requests)
    assert not list(tmp_path.rglob('outside*'))


def test_a_configuration_cannot_send_timm_to_another_place(hub, model, tmp_path):
    other = tmp_path / 'other.safetensors'
    other.write_bytes(b'x')
    config = config_of(hub)
    config['pretrained_cfg'] |= {'url': f'{hub.url}/evil.pth', 'file': str(other), 'source': 'timm', 'hf_hub_id': 'e/e'}
    put(hub, config=json.dumps(config).encode())
    assert_loads(model)
    assert not any('evil' in request or 'e/e' in request for request in hub.requests)


@pytest.mark.parametrize(('text', 'message'), [('{', 'is not JSON'), ('[]', 'holds list, not a JSON object')])
def test_a_file_that_is_no_configuration_is_refused(hub, model, text, message):
    put(hub, config=text.encode())
    with pytest.raises(ValueError, match=message):
        read_config_json('hf-hub:me/a')


def test_a_place_has_to_be_a_place(tmp_path):
    for place in ('me/a', 'hf-hub:', 'ftp:me/a'):
        with pytest.raises(ValueError, match="does not name a saved model; give 'hf-hub:user/repo' or 'local-dir:f"):
            read_config_json(place)
    with pytest.raises(FileNotFoundError, match=r'has no file config.json'):
        read_config_json(f'local-dir:{tmp_path}')

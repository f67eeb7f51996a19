"""Models that travel: to a Hub on loopback, into another process, and back."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from hub_server import in_another_process
from parity import images, randomised
from safetensors.torch import load_file
from torch import nn

import timm_se_plugin
from timm_se_plugin import AttentionSpec, push_to_hub
from timm_se_plugin.commands import push
from timm_se_plugin.sharing.cards import classifier_card
from timm_se_plugin.sharing.upload import merged_card
from timm_se_plugin.weights.facts import Facts, csv_row
from timm_se_plugin.weights.folders import write_model
from timm_se_plugin.weights.runs import MULTILABEL


def small(name='se_test_resnet_plugin', **kwargs):
    return randomised(timm.create_model(name, **{'num_classes': 5, **kwargs})).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(images(2, model.in_chans, 64, 64, dtype=torch.float32))


def warm_started(tmp_path):
    plain = small('test_resnet_plugin', num_classes=1000)
    path = tmp_path / 'plain.pth'
    torch.save(plain.state_dict(), path)
    return timm.create_model(
        'test_resnet_plugin', attn='se', pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path))).eval()


def trained_in_channels_last():
    model = small().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(images(4, 3, 64, 64, dtype=torch.float32).to(memory_format=torch.channels_last)).square().mean().backward()
    optimizer.step()
    assert not model.layer1[0].conv1.weight.is_contiguous()
    return model


PULL = """
import sys, torch, timm
try:
    timm.create_model(f'hf-hub:me/{sys.argv[2]}', pretrained=True)
except RuntimeError as error:
    print(error)
import timm_se_plugin
outputs = {}
for name in sys.argv[2:]:
    model = timm.create_model(f'hf-hub:me/{name}', pretrained=True).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs[name] = model(torch.randn(2, model.in_chans, 64, 64, generator=generator, dtype=torch.float32))
torch.save(outputs, sys.argv[1])
"""


def test_what_is_pushed_comes_back_in_another_process(hub, tmp_path):
    models = {
        'se': small(), 'sk': small('sk_test_resnet_plugin'), 'warm': warm_started(tmp_path),
        'grey': small(in_chans=1), 'fused': small(attn_fused=True), 'apart': small(attn_fused=False),
        'channels-last': trained_in_channels_last(), 'cifar': small('se_resnet20_cifar_plugin'),
        'other': small('test_resnet_plugin', attn='se', attn_gate='tanh'),
    }
    for name, model in models.items():
        push_to_hub(model, f'me/{name}')
    assert any(request.startswith('PUT /large/') for request in hub.requests)
    said = in_another_process(hub.url, tmp_path / 'home', PULL, tmp_path / 'outputs.pt', *models)
    assert said == 'Unknown model (se_test_resnet_plugin)\n'  # before it imports the plugin
    outputs = torch.load(tmp_path / 'outputs.pt')
    for name, model in models.items():
        model = model.to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(outputs[name], logits(model), rtol=1e-5, atol=1e-5, msg=name)


def test_a_hub_without_large_files_will_do(hub):
    hub.lfs_from = 10**9
    model = small()
    push_to_hub(model, 'me/a')
    assert not any('large' in request for request in hub.requests)
    assert torch.equal(logits(timm.create_model('hf-hub:me/a', pretrained=True)), logits(model))


def test_pushing_leaves_the_model_as_it_is(hub):
    model = trained_in_channels_last()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    push_to_hub(model, 'me/a')
    assert model.training
    assert not model.layer1[0].conv1.weight.is_contiguous()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_repository_holds_safetensors_and_what_the_plugin_knows(hub):
    model = small(attn_gate='tanh')
    shared = push_to_hub(model, 'me/a')
    assert shared.url.endswith(hub.repos['me/a'].branches['main'])
    files = hub.repos['me/a'].files('main')
    assert sorted(files) == ['.gitattributes', 'README.md', 'config.json', 'model.safetensors']
    assert {name: len(files[name]) for name in shared.files} == shared.files
    config = json.loads(files['config.json'])
    assert config['architecture'] == 'se_test_resnet_plugin'
    plugin = config['timm_se_plugin']
    assert plugin['version'] == timm_se_plugin.__version__
    assert AttentionSpec.from_kwargs(plugin['attention']) == AttentionSpec.of(model)
    assert AttentionSpec.of(timm.create_model('hf-hub:me/a')) == AttentionSpec.of(model)


def test_a_dry_run_shows_every_file_and_sends_nothing(hub):
    shared = push_to_hub(small(), 'me/a', dry_run=True)
    assert sorted(shared.files) == ['README.md', 'config.json', 'model.safetensors']
    assert 'architecture' in shared.texts['config.json']
    assert 'hf-hub:me/a' in shared.texts['README.md']
    assert shared.url is None
    assert hub.requests == []


def test_a_branch_is_made_and_pulled_by_its_name(hub):
    first, second = small(), small(attn_squeeze='max')
    push_to_hub(first, 'me/a')
    push_to_hub(second, 'me/a', revision='max')
    assert AttentionSpec.of(timm.create_model('hf-hub:me/a', pretrained=True)).squeeze == 'avg'
    model = timm.create_model('hf-hub:me/a@max', pretrained=True)
    assert torch.equal(logits(model), logits(second))
    assert b'hf-hub:me/a@max' in hub.repos['me/a'].files('max')['README.md']


def test_private_is_private_and_never_silently_public(hub):
    push_to_hub(small(), 'me/secret', private=True)
    assert hub.repos['me/secret'].private
    push_to_hub(small(), 'me/open')
    sent = len(hub.repos['me/open'].commits)
    with pytest.raises(ValueError, match='me/open exists and is public; make it private in its settings'):
        push_to_hub(small(), 'me/open', private=True)
    assert len(hub.repos['me/open'].commits) == sent


def test_what_has_arrived_is_not_sent_again_after_a_broken_upload(hub):
    from huggingface_hub.errors import HfHubHTTPError

    model = small()
    hub.fail('POST /api/models/me/a/commit', status=500)
    with pytest.raises(HfHubHTTPError, match='500'):
        push_to_hub(model, 'me/a')
    assert 'model.safetensors' not in hub.repos['me/a'].files('main')
    assert sum(request.startswith('PUT') for request in hub.requests) == 1
    push_to_hub(model, 'me/a')
    assert sum(request.startswith('PUT') for request in hub.requests) == 1
    assert torch.equal(logits(timm.create_model('hf-hub:me/a', pretrained=True)), logits(model))


def test_a_large_file_that_cannot_be_sent_is_one_message(hub):
    hub.fail('PUT /large', status=507)
    with pytest.raises(ConnectionError, match=r'me/a is not shared: .*model\.safetensors.*507.*; try again later'):
        push_to_hub(small(), 'me/a')


def test_a_saved_folder_is_pushed_as_the_model_in_it(hub, tmp_path):
    model = small()
    described = {'label_names': list('abcde'), 'license': 'mit', 'description': 'letters'}
    timm.models.save_for_hf(model, tmp_path / 'saved', described, safe_serialization=True)
    shared = push_to_hub(tmp_path / 'saved', 'me/a')
    assert described.items() <= json.loads(shared.texts['config.json']).items()
    assert torch.equal(logits(timm.create_model('hf-hub:me/a', pretrained=True)), logits(model))
    with pytest.raises(ValueError, match=r'has nothing to share: neither the config.json'):
        push_to_hub(tmp_path, 'me/a')
    with pytest.raises(FileNotFoundError, match=rf'there is no folder {Path.cwd() / "nowhere"}$'):
        push_to_hub('nowhere', 'me/a')


def test_the_prefix_of_a_saved_folder_is_taken_and_a_file_is_refused(tmp_path):
    write_model(small(), tmp_path / 'saved')
    assert 'config.json' in push_to_hub(f'local-dir:{tmp_path / "saved"}', 'me/a', dry_run=True).files
    with pytest.raises(ValueError, match=r'model.safetensors is a file; give the folder .*saved$'):
        push_to_hub(tmp_path / 'saved' / 'model.safetensors', 'me/a', dry_run=True)


@pytest.mark.parametrize(('name', 'message'), [
    ('digits', 'lacks the name of its user or organisation; give user/digits'), ('me/a b', 'me/a b'),
    ('hf-hub:me/a', 'hf-hub:me/a'), ('https://huggingface.co/me/a', 'https://huggingface.co/me/a')])
def test_a_name_that_is_no_repository_is_refused_by_a_dry_run_too(name, message):
    with pytest.raises(ValueError, match=message):
        push_to_hub(small(), name, dry_run=True)


def test_what_would_not_come_back_is_refused(hub):
    with pytest.raises(ValueError, match=r'a network is needed .*, not a value of the type OrderedDict'):
        push_to_hub(small().state_dict(), 'me/a')
    with pytest.raises(ValueError, match=r'Linear cannot be written: it is not a whole model, as timm.create_model'):
        push_to_hub(nn.Linear(1, 1), 'me/a')
    with pytest.raises(ValueError, match=r'would not load from its config.json.*fuse_for_inference'):
        push_to_hub(timm_se_plugin.fuse_for_inference(small()), 'me/a')
    model = small()
    model.layer1[0].act2 = nn.Tanh()
    with pytest.raises(ValueError, match=r'loaded from its config\.json, it computes another function'):
        push_to_hub(model, 'me/a')
    with pytest.raises(ValueError, match=r'cannot be written|would not load'):
        push_to_hub(timm.create_model('se_test_resnet_plugin', features_only=True), 'me/a')
    assert hub.requests == []


@pytest.mark.parametrize(('value', 'said'), [
    (float('nan'), r'so are 1 of its \d+ tensors, such as fc\.weight, as after a training that has diverged'),
    (3e38, 'its weights are finite, but too large')])
def test_a_model_that_has_diverged_is_called_so(value, said, tmp_path):
    model = small()
    with torch.no_grad():
        model.fc.weight.fill_(value)
    with pytest.raises(ValueError, match=f'is not written, since its outputs are NaN or infinite: {said}$'):
        write_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('names', 'said'), [(list('abc'), '3 names'), ('abcde', "'abcde'")])
def test_another_number_of_names_than_of_classes_is_refused(names, said, tmp_path):
    with pytest.raises(ValueError, match=f'label_names has {said}, and the model has 5 classes'):
        write_model(small(), tmp_path, {'label_names': names})
    write_model(small(), tmp_path, {'label_names': {0: 'a', 4: 'e'}})


def test_a_model_that_cannot_be_written_leaves_the_saved_one_as_it_is(tmp_path):
    write_model(small(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r'is not written, since it would not load from its config.json'):
        write_model(timm_se_plugin.fuse_for_inference(small()), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    loaded = write_model(small(attn_gate='tanh'), tmp_path)
    assert loaded.pretrained_cfg['file'] == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'model.safetensors']


def test_a_wrapped_model_is_pushed_without_its_wrapper(tmp_path):
    model = small()
    wrapped = nn.Module()
    wrapped.module = model
    write_model(wrapped, tmp_path)
    assert load_file(tmp_path / 'model.safetensors').keys() == model.state_dict().keys()


def test_labels_and_preprocessing_travel(tmp_path):
    write_model(small(), tmp_path, model_config={'label_names': list('abcde')},
                data_config={'mean': (0.1,) * 3, 'input_size': (3, 64, 64)})
    cfg = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).pretrained_cfg
    assert (cfg['label_names'], cfg['mean'], tuple(cfg['input_size'])) == (list('abcde'), [0.1] * 3, (3, 64, 64))


# The card.

def test_the_first_lines_of_a_card_say_which_import_is_missing(hub):
    push_to_hub(small(), 'me/a')
    text = hub.repos['me/a'].files('main')['README.md'].decode()
    body = text.split('---\n', 2)[2].split('\n')
    lines = [line for line in body if line and not line.startswith('<!--')]
    assert lines[0].startswith('**`import timm_se_plugin` first**')
    assert 'Unknown model (se_test_resnet_plugin)' in lines[0]  # timm's answer, in the first test


def test_a_card_says_what_is_known_and_nothing_else(hub):
    text = push_to_hub(small(), 'me/a', dry_run=True).texts['README.md']
    assert 'license' not in text.lower()
    for heading in ('## Data', '## Training', '## Results'):
        assert heading not in text
    results = {'top1': '97.5', 'seed': 0, 'options': 'crop|flip'}
    facts = Facts('mit', 'digits', 'AdamW, 6 epochs', results, 'results/digits.csv')
    text = push_to_hub(small(), 'me/a', facts, dry_run=True).texts['README.md']
    for part in ('license: mit', '## Data\n\ndigits', '## Training\n\nAdamW, 6 epochs', '| top1 | seed | options |',
                 r'| 97.5 | 0 | crop\|flip |', '`results/digits.csv`'):
        assert part in text
    assert '**: None' not in text


def test_results_that_are_given_are_not_said_to_be_of_the_runs_table(tmp_path):
    torch.save({'state_dict': small().state_dict(), 'epoch': 0, 'args': argparse.Namespace(
        model='se_test_resnet_plugin', num_classes=5)}, tmp_path / 'last.pth.tar')
    (tmp_path / 'summary.csv').write_text('epoch,eval_top1\n0,50\n')
    assert 'The row of `summary.csv`' in push_to_hub(tmp_path, 'me/a', dry_run=True).texts['README.md']
    text = push_to_hub(tmp_path, 'me/a', Facts(results={'top1': '77'}), dry_run=True).texts['README.md']
    assert '| 77 |' in text
    assert 'summary.csv' not in text


def test_the_license_of_a_saved_model_is_on_its_card(tmp_path):
    write_model(small(), tmp_path, {'license': 'mit'})
    assert 'license: mit\n' in push_to_hub(tmp_path, 'me/a', dry_run=True).texts['README.md']
    text = push_to_hub(tmp_path, 'me/a', Facts('apache-2.0'), dry_run=True).texts['README.md']
    assert 'license: apache-2.0\n' in text


def test_names_of_another_number_of_classes_do_not_hinder_the_sharing_of_a_saved_model(tmp_path):
    write_model(small(), tmp_path, {'license': 'mit'})
    config = json.loads((tmp_path / 'config.json').read_text(encoding='utf-8'))
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'label_names': ['a', 'b']}), encoding='utf-8')
    texts = push_to_hub(tmp_path, 'me/a', dry_run=True).texts
    assert 'label_names' not in json.loads(texts['config.json'])
    assert ('- **Classes**: 5\n' in texts['README.md'], 'license: mit' in texts['README.md']) == (True, True)


def test_a_row_without_a_table_is_refused(tmp_path):
    parser = argparse.ArgumentParser()
    push.add_arguments(parser)
    write_model(small(), tmp_path)
    with pytest.raises(ValueError, match=r'--results-row 2 is the row of a table; name the table with --results'):
        push.run(parser.parse_args([str(tmp_path), 'me/a', '--dry-run', '--results-row', '2']))


def test_classes_that_a_configuration_names_by_their_numbers_are_on_the_card(tmp_path):
    write_model(small(), tmp_path, {'label_names': dict(enumerate('abcde'))})
    text = push_to_hub(tmp_path, 'me/a', dry_run=True).texts['README.md']
    assert '**Classes**: 5: a, b, c, d, e\n' in text


def test_the_code_of_a_card_runs(hub):
    from PIL import Image
    push_to_hub(small(), 'me/a')
    text = hub.repos['me/a'].files('main')['README.md'].decode()
    code = text.split('```python\n')[1].split('```')[0]
    assert len(code.strip().splitlines()) == 5
    scope = {'image': Image.new('RGB', (300, 200))}
    exec(code, scope)
    assert scope['probabilities'].shape == (1, 5)
    assert float(scope['probabilities'].detach().sum()) == pytest.approx(1)


def test_a_card_reads_the_output_as_the_model_means_it(tmp_path):
    write_model(small(), tmp_path, {'problem_type': MULTILABEL})
    text = push_to_hub(tmp_path, 'me/a', dry_run=True).texts['README.md']
    assert 'probabilities = model(transform(image)[None]).sigmoid()' in text
    assert '**Classes, of which a picture has any number**: 5' in text
    write_model(small(), tmp_path, {'problem_type': MULTILABEL, 'upright': False})
    for classes, kept in ((5, True), (3, False)):
        model = timm.create_model(f'local-dir:{tmp_path}', num_classes=classes)
        texts = push_to_hub(model, 'me/a', Facts(license='mit'), dry_run=True).texts
        assert ('.sigmoid()' in texts['README.md'], '"upright": false' in texts['config.json']) == (kept, kept)
        write_model(model, tmp_path / 'again')
        assert ('upright' in (tmp_path / 'again' / 'config.json').read_text()) == kept
    with pytest.raises(ValueError, match='FeatureListNet cannot be written'):
        push_to_hub(timm.create_model(f'local-dir:{tmp_path}', features_only=True), 'me/a', dry_run=True)
    text = push_to_hub(small(num_classes=0), 'me/a', dry_run=True).texts['README.md']
    assert '\nfeatures = model(transform(image)[None])  #' in text


def test_the_numbers_of_a_card_are_the_models():
    text = classifier_card(timm.create_model('se_resnet50_plugin', device='meta'), 'me/a', Facts())
    assert '28,088,024, 2,530,992 of them attention' in text  # SE paper: 25,557,032 without


def test_an_edited_card_keeps_what_its_owner_wrote(hub):
    push_to_hub(small(), 'me/a')
    repo = hub.repos['me/a']
    edited = repo.files('main')['README.md'].decode() + '\nMy own words.\n'
    repo.commit('main', {'README.md': edited.encode()})
    push_to_hub(small(attn_gate='tanh'), 'me/a')
    text = repo.files('main')['README.md'].decode()
    assert "attn_gate='tanh'" in text
    assert "attn_gate='sigmoid'" not in text
    assert text.endswith('\nMy own words.\n')
    assert merged_card('all theirs', text) == 'all theirs'


def test_a_card_gains_the_license_that_is_given_later(hub):
    push_to_hub(small(), 'me/a')
    repo = hub.repos['me/a']
    edited = repo.files('main')['README.md'].decode().replace('---\n', '---\nlanguage: en\n', 1)
    repo.commit('main', {'README.md': edited.encode()})
    push_to_hub(small(), 'me/a', Facts('mit'))
    head = repo.files('main')['README.md'].decode().split('---\n')[1]
    assert 'license: mit\n' in head
    assert 'language: en\n' in head
    push_to_hub(small(), 'me/a')
    assert repo.files('main')['README.md'].decode().split('---\n')[1] == head


def test_a_table_that_is_broken_is_named(tmp_path):
    path = tmp_path / 'a.csv'
    for line in ('a', 'a,1,2'):
        path.write_text(f'model,top1\n{line}\n')
        with pytest.raises(ValueError, match=r'row 1 of .*a.csv has another number of values than the header has col'):
            csv_row(path)


@pytest.mark.parametrize('present', ['---\nlicense: mit\n---\n', '---\nlicense: mit\n---', '\n'])
def test_a_card_without_text_gets_the_text(hub, present):
    """The Hub's website writes such a card into a repository that is made there with a license."""
    push_to_hub(small(), 'me/a')
    repo = hub.repos['me/a']
    repo.commit('main', {'README.md': present.encode()})
    push_to_hub(small(), 'me/a')
    text = repo.files('main')['README.md'].decode()
    assert "timm.create_model('hf-hub:me/a', pretrained=True)" in text
    assert 'library_name: timm' in text.split('---\n')[1]
    assert ('license: mit' in text) == ('mit' in present)


def test_a_card_that_stays_as_it_is_is_told(hub, caplog):
    push_to_hub(small(), 'me/a')
    theirs = b'---\nlicense: mit\n---\nMine.\n\n---\n'
    hub.repos['me/a'].commit('main', {'README.md': theirs})
    push_to_hub(small(), 'me/a')
    assert hub.repos['me/a'].files('main')['README.md'] == theirs
    assert 'the README.md of me/a is not of this package and stays as it is; put the two lines <!--' in caplog.text


def test_a_row_of_a_csv_file_has_to_be_chosen(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('epoch,top1\n1,50\n2,60\n')
    assert csv_row(path, 2) == csv_row(path, -1) == {'epoch': '2', 'top1': '60'}
    for row in (None, 0, 3, -3):
        with pytest.raises(ValueError, match=r'has 2 rows, and row=.* is none of them; give a number from 1 to 2'):
            csv_row(path, row)
    path.write_text('epoch\n')
    with pytest.raises(ValueError, match='no row below its header'):
        csv_row(path)


@pytest.mark.parametrize('fault', [None, 403, 500])
def test_no_token_reaches_a_log(hub, caplog, capfd, fault):
    hub.token = 'hf_verySecretToken'
    caplog.set_level(logging.DEBUG)
    logging.getLogger('huggingface_hub').setLevel(logging.DEBUG)
    said = ''
    if fault:
        hub.fail('POST /api/models/me/a/commit', status=fault)
    try:
        push_to_hub(small(), 'me/a', token=hub.token)
        assert fault is None
    except OSError as error:
        said = repr(error) + str(error)
        assert str(fault) in said
    out = capfd.readouterr()
    assert 'verySecret' not in caplog.text + out.out + out.err + said
    files = hub.repos['me/a'].files('main')
    assert not any(b'verySecret' in data for data in files.values())

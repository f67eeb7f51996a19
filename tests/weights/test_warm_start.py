"""Tags ``from_<tag>``: a base's published weights, over HTTP, into a network with attention."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from networks import few_blocks
from parity import images, randomised

from timm_se_plugin import AttentionSpec
from timm_se_plugin.placement import attention_modules


@pytest.fixture
def published(tmp_path):
    """Folder on a server, its address, and what was asked of it."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    folder = tmp_path / 'published'
    folder.mkdir()
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()


def start(name, address, cache, **kwargs):
    return timm.create_model(
        name, pretrained=True, cache_dir=cache, pretrained_cfg_overlay=dict(url=f'{address}/base.pth', hf_hub_id=None),
        **kwargs)


@pytest.mark.parametrize('tag', [
    'resnet18.a1_in1k', 'convnext_atto.d2_in1k', 'densenet121.ra_in1k', 'mobilenetv2_050.lamb_in1k',
    'regnetx_002.pycls_in1k', 'resnetv2_50.a1h_in1k', 'vgg11_bn.tv_in1k',
    pytest.param('inception_v3.tf_in1k', marks=pytest.mark.slow),
    pytest.param('inception_v4.tf_in1k', marks=pytest.mark.slow),
    pytest.param('inception_resnet_v2.tf_in1k', marks=pytest.mark.slow),
    pytest.param('legacy_xception.tf_in1k', marks=pytest.mark.slow),
    pytest.param('dpn68b.ra_in1k', marks=pytest.mark.slow), pytest.param('res2net50d.in1k', marks=pytest.mark.slow)])
def test_a_base_gains_attention_and_loses_nothing(tag, published, tmp_path, caplog):
    folder, address, asked = published
    base, _, tag = tag.partition('.')
    few = few_blocks(base)
    plain = randomised(timm.create_model(base, **few)).eval()
    torch.save(plain.state_dict(), folder / 'base.pth')
    model = start(f'se_{base}_plugin.from_{tag}', address, tmp_path, **few).eval()
    assert asked == ['/base.pth']
    assert "give attn_init='identity' again whenever you load a checkpoint" in caplog.text
    assert AttentionSpec.of(model) == AttentionSpec('se', init='identity')
    assert len(attention_modules(model)) > 3
    x = images(2, 3, 96, 96, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    model.train()(x).square().sum().backward()
    # The bias: of two hidden units both may be at rest, and the weights then have no gradient.
    assert all(layer.fc2.bias.grad.abs().max() > 0 for layer in attention_modules(model).values())


def test_a_base_without_weights_has_no_such_tag():
    assert not timm.models.is_model_pretrained('se_bn_inception_plugin')
    with pytest.raises(ValueError, match="se_bn_inception_plugin has no tag 'from_in1k'; its tags are none"):
        timm.create_model('se_bn_inception_plugin.from_in1k', pretrained=True)


@pytest.mark.parametrize('base', ['regnetx_002.pycls_in1k', 'convnext_atto.d2_in1k'])
def test_exactly_the_attention_may_be_missing(base, published, tmp_path):
    folder, address, _ = published
    base, _, tag = base.partition('.')
    weights = timm.create_model(base, **few_blocks(base)).state_dict()
    first = next(iter(weights))
    torch.save({key: value for key, value in weights.items() if key != first}, folder / 'base.pth')
    with pytest.raises(ValueError, match=f'does not fit se_{base}_plugin: missing {first}$'):
        start(f'se_{base}_plugin.from_{tag}', address, tmp_path / 'a', **few_blocks(base))
    attended = timm.create_model(f'se_{base}_plugin', **few_blocks(base)).state_dict()
    torch.save(attended, folder / 'base.pth')
    with pytest.raises(ValueError, match=r'plugin: unexpected .*\.se\.fc1\.bias'):
        start(f'se_{base}_plugin.from_{tag}', address, tmp_path / 'b', **few_blocks(base))


def test_options_refine_what_is_gained(published, tmp_path):
    folder, address, _ = published
    plain = randomised(timm.create_model('convnext_atto', depths=(1, 1, 1, 1))).eval()
    torch.save(plain.state_dict(), folder / 'base.pth')
    kwargs = dict(depths=(1, 1, 1, 1))
    name = 'convnext_atto_plugin.d2_in1k'
    x = images(1, 3, 64, 64, dtype=torch.float32)
    for options in ({'attn': 'cbam'}, {'attn': 'scse', 'attn_integration': 'post'},
                    {'attn': 'se', 'attn_stages': (3, 4)}, {'attn': 'gc', 'attn_sites': r'stages\.\d'}):
        model = start(name, address, tmp_path, **options, **kwargs).eval()
        assert len(attention_modules(model)) == len(options.get('attn_stages', (1, 2, 3, 4)))
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"cannot gain attn='bam', .*; choose one of se, eca, ese, cbam, gc, cse, ss"):
        start(name, address, tmp_path, attn='bam', **kwargs)

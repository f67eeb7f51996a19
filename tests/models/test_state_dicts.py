"""Given weights beside those that a network expects, worked by hand."""

import torch

from timm_se_plugin import AttentionSpec
from timm_se_plugin.models.state_dicts import Misfit
from timm_se_plugin.placement.spec import attention_misfit


def test_a_misfit_names_what_is_missing_unexpected_and_of_another_shape():
    given = {'a': torch.zeros(1), 'b': torch.zeros(2, 3), 'z': torch.zeros(1)}
    expected = {'a': torch.zeros(1), 'b': torch.zeros(4), 'c': torch.zeros(1)}
    assert str(Misfit.of(given, expected)) == 'missing c; unexpected z; of another shape b (2, 3) instead of (4,)'
    assert str(Misfit.of(given, expected, ignored=('c', 'z'))) == 'of another shape b (2, 3) instead of (4,)'
    assert str(Misfit.of({}, dict.fromkeys('fedcba', torch.zeros(1)))) == 'missing a, b, c, d and 2 more'


def test_weights_that_a_network_can_load_are_no_misfit():
    norm = torch.nn.BatchNorm2d(3).state_dict()
    without = {key: value for key, value in norm.items() if key != 'num_batches_tracked'}
    assert not Misfit.of(norm, without)
    assert not Misfit.of(without, norm)
    assert not Misfit.of({key: tuple(value.shape) for key, value in norm.items()}, norm)  # as a file's header has them
    assert Misfit.of({**norm, 'weight': torch.zeros(4)}, norm)


def test_attentions_are_compared_by_what_they_compute():
    se = AttentionSpec('se')
    assert attention_misfit(se, AttentionSpec('se', fused=False)) == ''
    assert attention_misfit(None, None) == ''
    assert attention_misfit(se, None) == "attn='se' (the weights have None)"
    other = AttentionSpec('se', rd_ratio=1 / 8, gate='tanh')
    assert attention_misfit(se, other) == (
        "attn_rd_ratio=0.0625 (the weights have 0.125), attn_gate='sigmoid' (the weights have 'tanh')")
    assert attention_misfit(se, other, ignored='attn_rd_') == "attn_gate='sigmoid' (the weights have 'tanh')"

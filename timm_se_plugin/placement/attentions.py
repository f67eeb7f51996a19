"""One record for each attention holds what the package knows of it; users can register attentions of their own."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import EcaModule, EffectiveSEModule, GlobalContext, get_act_layer
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ..layers import (
    BottleneckAttention,
    ConcurrentSqueezeExcite,
    SelectiveKernel,
    SpatialSqueezeExcite,
    SqueezeExcite,
)
from ..layers.squeeze_excite import GATES, reduced_channels
from ..layers.zero_start import start_at_zero

__all__ = ['ATTENTIONS', 'Attention', 'attention_layers', 'names_that_start_at_identity', 'record_of',
           'register_attention', 'start_at_identity']

_PLACEMENT = ('stages', 'fused', 'integration', 'sites')
# Keywords that a registered layer cannot have, since the specification uses these names in another way.
_RESERVED = ('attn', 'extra', *_PLACEMENT, 'kernels', 'keep_3x3', 'split_input', 'select', 'sk_stages')
_WIDTH = {'rd_ratio': 1 / 16, 'rd_channels': None, 'rd_divisor': 1}
_GATE = {'gate': 'sigmoid', 'init': 'default'}
_SE = {**_WIDTH, 'squeeze': 'avg', 'act_layer': 'relu', **_GATE, 'bias': True}
_CHANNEL_SE = {**_WIDTH, 'act_layer': 'relu', **_GATE, 'bias': True, 'rd_ratio': 1 / 2}
_SK = {**_WIDTH, 'rd_min_channels': None, 'kernels': (3, 5), 'keep_3x3': True, 'groups': None, 'split_input': False,
       'select': 'softmax'}


@dataclass(frozen=True)
class Attention:
    """All that the package knows of one attention.

    Args:
        name: what ``attn=`` calls it.
        layer: class of the layer, ``layer(channels, **options, device=…, dtype=…)`` with shape (N, C, H, W) ->
            (N, C, H, W); :class:`~timm_se_plugin.layers.SelectiveKernel` takes the place of a convolution instead.
        options: the layer's options and their defaults, the model keywords ``attn_<option>``.
        paper: arXiv number.
        tags: tags of its models on the Hub.
        create: makes the layer where the class does not take `options` as keywords; None where it does.
        last_layers: names of the layer's modules that decide on its gates. When these are zeroed, every gate has its
            value at 0 and the layer returns its input, as ``init='identity'`` asks; empty where that is impossible.
        identity_gate: the gate that ``init='identity'`` needs; None where the layer has no choice of gates.
        gates: names of the modules of the layer whose outputs are gates.
        placement: the options of placement that it accepts.
        selects_kernels: whether blocks get a Selective Kernel in the place of their 3x3 convolution.
        recalibrates: whether blocks get `layer` at a place of the SE paper's Figure 5.
    """

    name: str
    layer: type[nn.Module]
    options: Mapping[str, Any]
    paper: str = ''
    tags: tuple[str, ...] = ()
    create: Callable[..., nn.Module] | None = None
    last_layers: tuple[str, ...] = ()
    identity_gate: str | None = None
    gates: tuple[str, ...] = ('gate',)
    placement: tuple[str, ...] = _PLACEMENT
    selects_kernels: bool = False
    recalibrates: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all options of the attention, without ``attn_``."""
        return (*self.placement, *self.options)

    @property
    def starts_at_identity(self) -> bool:
        """Whether the attention can be added to a network without changing the output."""
        return bool(self.last_layers) and not self.selects_kernels

    def build(
            self, channels: int, options: Mapping[str, Any], device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The layer for `channels` channels, with all of its options given."""
        create: Any = self.create or self.layer
        taken = inspect.signature(create).parameters  # 'sk+se' has the options of two layers; this one is SE
        given = {name: options[name] for name in self.options
                 if name in taken and name != 'init' and options[name] is not None}
        if 'act_layer' in given:
            given['act_layer'] = get_act_layer(given['act_layer'])
        layer = create(channels, **given, device=device, dtype=dtype)
        if options.get('init') == 'identity':
            start_at_identity(layer)
        return layer


def _with_gate_layer(layer: type[nn.Module]) -> Callable[..., nn.Module]:
    """Constructor of a timm layer by the package's options; timm takes the gate as a class, the width as a number."""
    def create(
            channels: int, gate: str, rd_ratio: float | None = None, rd_channels: int | None = None,
            rd_divisor: int = 1, act_layer: type[nn.Module] | None = None, **factory: Any,
    ) -> nn.Module:
        if rd_ratio is not None:
            factory['rd_channels'] = rd_channels or reduced_channels(channels, rd_ratio, rd_divisor)
        if act_layer is not None:
            factory['act_layer'] = act_layer
        return layer(channels, gate_layer=GATES[gate], **factory)

    return create


ATTENTIONS: dict[str, Attention] = {attention.name: attention for attention in (
    Attention('se', SqueezeExcite, _SE, '1709.01507', ('squeeze-and-excitation',),
              last_layers=('fc2',), identity_gate='double_sigmoid'),
    Attention('sk', SelectiveKernel, _SK, '1903.06586', ('selective-kernel',), gates=('attn',),
              placement=('stages', 'fused'), selects_kernels=True, recalibrates=False),
    Attention('sk+se', SqueezeExcite, {**_SK, **_SE, 'sk_stages': (1, 2, 3, 4)}, '1903.06586',
              ('selective-kernel', 'squeeze-and-excitation'), last_layers=('fc2',), identity_gate='double_sigmoid',
              placement=('stages', 'fused', 'integration'), selects_kernels=True),
    Attention('eca', EcaModule, _GATE, '1910.03151', ('efficient-channel-attention',),
              create=_with_gate_layer(EcaModule), last_layers=('conv',), identity_gate='double_sigmoid'),
    Attention('ese', EffectiveSEModule, {**_GATE, 'gate': 'hard_sigmoid'}, '1911.06667', ('effective-se',),
              create=_with_gate_layer(EffectiveSEModule), last_layers=('fc',), identity_gate='double_sigmoid'),
    # The spatial half of CBAM ends in a norm: zeroing the convolution before it would leave the norm's bias.
    Attention('cbam', CbamModule, {**_WIDTH, 'act_layer': 'relu', **_GATE}, '1807.06521', ('cbam',),
              create=_with_gate_layer(CbamModule), last_layers=('channel.fc2', 'spatial.conv.bn'),
              identity_gate='double_sigmoid', gates=('channel.gate', 'spatial.gate')),
    Attention('gc', GlobalContext, {**_WIDTH, 'act_layer': 'relu', **_GATE}, '1904.11492', ('global-context',),
              create=_with_gate_layer(GlobalContext), last_layers=('mlp_scale.fc2',),
              identity_gate='double_sigmoid'),
    Attention('cse', SqueezeExcite, _CHANNEL_SE, '1803.02579', ('channel-se',), last_layers=('fc2',),
              identity_gate='double_sigmoid'),
    Attention('sse', SpatialSqueezeExcite, {**_GATE, 'bias': True}, '1803.02579', ('spatial-se',),
              last_layers=('conv',), identity_gate='double_sigmoid'),
    # The sum of two halves: each gate is sigmoid(0) = 1/2.
    Attention('scse', ConcurrentSqueezeExcite, _CHANNEL_SE, '1803.02579', ('concurrent-se',),
              last_layers=('cse.fc2', 'sse.conv'), identity_gate='sigmoid', gates=('cse.gate', 'sse.gate')),
    Attention('bam', BottleneckAttention, {**_WIDTH, 'act_layer': 'relu'}, '1807.06514', ('bam',)),
)}


OWN = frozenset(ATTENTIONS)


def register_attention(
        name: str, layer: type[nn.Module], *, paper: str = '', tags: Iterable[str] = (),
        last_layers: Iterable[str] = (), identity_gate: str | None = None, gates: Iterable[str] = ('gate',),
) -> Attention:
    """Let ``attn=name`` place a layer of your own wherever the package's attentions go.

    Every keyword of the layer's constructor becomes a model keyword ``attn_<keyword>``, which is part of the
    specification and of config.json. For a keyword ``act_layer`` users give timm's name of the activation, and the
    layer receives the class. A sequence of values reaches the layer as a tuple, or as a list if the default is a list.
    ``gate`` and ``init`` have their meaning in :class:`AttentionSpec`. The layer begins with the weights that its
    constructor gives it. A saved network can be loaded only after its
    attention has been registered. Registering a class of the same module and name again, as when a notebook's cell runs
    a second time, takes the place of the former registration::

        class SimAM(nn.Module):
            def __init__(self, channels: int, e_lambda: float = 1e-4, device=None, dtype=None): ...

        timm_se_plugin.register_attention('simam', SimAM, paper='2106.03357')
        model = timm.create_model('resnet50_plugin', attn='simam', attn_e_lambda=1e-3)

    Args:
        name: a lower-case word that is not yet the name of an attention.
        layer: a class whose first argument is the number of channels, whose other arguments have defaults and which
            takes ``device`` and ``dtype``. Shape: (N, C, H, W) -> (N, C, H, W).
        paper: arXiv number, for the model card.
        tags: of a model on the Hub; `name` if none are given.
        last_layers: names of the layer's modules whose weight and bias decide on the gates, if ``init='identity'`` is
            to be possible: it zeroes these modules, and the layer has to return its input then.
        identity_gate: the value of the layer's keyword ``gate`` with which it returns its input then; None if the layer
            has no such keyword.
        gates: names of the layer's modules whose outputs are gates, for the analysis.

    Raises:
        ValueError: a name that is taken or is no lower-case word, a layer that is no class derived from ``nn.Module``,
            a constructor that cannot be called as above, or a keyword that is the name of an option of placement or of
            a Selective Kernel.
    """
    former = getattr(ATTENTIONS.get(name), 'layer', None)
    is_again = name not in OWN and _full_name(layer) == _full_name(former)
    is_taken = name == 'none' or (name in ATTENTIONS and not is_again)
    if is_taken or not name.isidentifier() or name != name.lower():
        raise ValueError(f'{name!r} cannot name an attention: choose a lower-case word other than '
                         f'{", ".join(ATTENTIONS)}, none')
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f'{layer!r} cannot be an attention: it is not a class derived from torch.nn.Module')
    parameters = list(inspect.signature(layer).parameters.values())[1:]  # the first is the number of channels
    options = {parameter.name: parameter.default for parameter in parameters
               if parameter.name not in ('device', 'dtype')}
    taken = [option for option in options if option in _RESERVED]
    if taken:
        raise ValueError(f'{layer.__name__} cannot be an attention: its keyword {taken[0]} is the name of another '
                         f'option, attn_{taken[0]}; rename the keyword')
    unsuited = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    factory = {'device', 'dtype'} - {parameter.name for parameter in parameters}
    if unsuited or factory:
        why = f'has no default for {", ".join(unsuited)}' if unsuited else f'lacks {", ".join(sorted(factory))}'
        raise ValueError(f'{layer.__name__} cannot be an attention: its constructor {why}; it is called as '
                         'layer(channels, option=…, device=…, dtype=…)')
    # A string is one name, and not a sequence of letters.
    tags, last_layers, gates = ((names,) if isinstance(names, str) else tuple(names)
                                for names in (tags, last_layers, gates))
    if last_layers:
        options['init'] = 'default'
    if isinstance(options.get('act_layer'), type):
        options['act_layer'] = None  # the layer's own, whose name in timm is not known
    attention = Attention(
        name, layer, options, paper, tags or (name,), last_layers=last_layers, identity_gate=identity_gate, gates=gates)
    ATTENTIONS[name] = attention
    return attention


def _full_name(layer: Any) -> tuple[Any, Any]:
    return getattr(layer, '__module__', None), getattr(layer, '__qualname__', None)


def attention_layers() -> tuple[type[nn.Module], ...]:
    """Classes of all layers that recalibrate a map."""
    return tuple({attention.layer: None for attention in ATTENTIONS.values() if attention.recalibrates})


def record_of(layer: nn.Module) -> Attention | None:
    """The record of a layer's class, or else of its nearest base class; of those that share it, the first one."""
    records = [attention for attention in ATTENTIONS.values()
               if attention.recalibrates and isinstance(layer, attention.layer)]
    return min(records, key=lambda attention: type(layer).__mro__.index(attention.layer), default=None)


def names_that_start_at_identity() -> tuple[str, ...]:
    """Names of the attentions that can be added to a plain network's weights without changing the output."""
    return tuple(name for name, attention in ATTENTIONS.items() if attention.starts_at_identity)


def start_at_identity(layer: Any) -> None:
    """Zero the modules that decide on the gates of an attention layer, and record that in the layer's ``init``.

    Raises:
        ValueError: a registered layer does not have a module that its registration names.
    """
    record = record_of(layer)
    assert record is not None  # called for layers that a record made
    layer.init = 'identity'
    for name in record.last_layers:
        module = dict(layer.named_modules()).get(name)
        if not isinstance(getattr(module, 'weight', None), Tensor):
            raise ValueError(f"attn_init='identity' zeroes {name!r}, which last_layers= of {record.name!r} names, but "
                             f'a {type(layer).__name__} has no module of this name with a weight')
        start_at_zero(module)

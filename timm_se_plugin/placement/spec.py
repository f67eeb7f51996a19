"""Which attention a network carries and where: one object holds this from the model keyword to the block."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal

import torch
from timm.layers import get_act_layer
from torch import nn

from ..layers import SelectiveKernel
from ..layers.selective_kernel import SELECTS
from ..layers.squeeze_excite import GATES, SQUEEZES
from .attentions import ATTENTIONS, Attention

__all__ = [
    'INTEGRATIONS', 'SHOWN_BY_WEIGHTS', 'AttentionSpec', 'applicable', 'attention_misfit', 'is_option',
    'split_attention_kwargs']

INTEGRATIONS = ('standard', 'pre', 'post', 'identity', '3x3')
# Options that do not change what a network computes with given weights.
_RUNTIME = ('fused', 'init')
# Prefixes of model keywords that set places and widths, which the keys and shapes of weights show.
SHOWN_BY_WEIGHTS = ('attn_rd_', 'attn_stages', 'attn_sk_stages', 'attn_sites')


@dataclass(frozen=True)
class AttentionSpec:
    """Attention and its place in a network; every field is the model keyword ``attn_<field>``.

    Args:
        attn: the attention: ``'se'``, ``'sk'``, ``'sk+se'``, ``'eca'``, ``'ese'``, ``'cbam'``, ``'gc'`` (its context
            fused by a gate), ``'cse'``, ``'sse'``, ``'scse'``, ``'bam'``, or one of your own; ``ATTENTIONS`` names
            their papers.
        integration: where it sits in a residual unit (SE paper, Figure 5, Tables 14 and 15): ``'standard'`` on the
            residual branch before the addition, ``'pre'`` before the unit, ``'post'`` after addition and activation,
            ``'identity'`` on the shortcut, ``'3x3'`` after the (first) 3x3 convolution and its normalisation. Other
            networks than ResNets have those that ``placement/families.py`` lists.
        stages: which of timm's layer1..layer4 (the paper's stages 2 to 5) carry it; an integer for one of them. In
            other networks stage 4 ends with the last feature level, stage 3 with the level before, and so on.
        sites: regular expression for the names of the modules whose output it recalibrates, instead of
            ``integration`` and ``stages``.
        rd_ratio: 1 / r, a fraction in (0, 1], or a string such as ``'1/16'``; if None 1/2 in ``'cse'`` and ``'scse'``,
            1/16 elsewhere. In ``'sk+se'`` both attentions use this and the next two options.
        rd_channels: inner width; takes the place of ``rd_ratio``.
        rd_divisor: 1, the default, for the papers' widths, C // r and max(C / r, L); anything else for timm's rule.
        squeeze: ``'avg'``, the default, ``'max'`` or ``'none'``.
        act_layer: the inner activation, by timm's name; ``'relu'`` if None.
        gate: a name in ``GATES``; if None the paper's, ``'sigmoid'`` (in ``'ese'`` ``'hard_sigmoid'``), or with
            ``init='identity'`` ``'double_sigmoid'`` (in ``'scse'`` ``'sigmoid'``).
        bias: bias in the excitation's layers; True if None.
        init: ``'identity'`` starts with every gate at exactly 1.
        kernels: SK's branches, odd sizes; a 5 is a 3x3 of dilation 2 (SK paper, Table 7).
        keep_3x3: False for true 5x5 and larger kernels (Table 6).
        groups: groups of the branches, one number or one for each; the base's if None (Table 6).
        split_input: each branch gets its share of the channels, as in timm's trained ``skresnet18`` and ``34``.
        select: ``'softmax'``, or ``'sum'`` of the branches without attention (Table 7), which has no inner width.
        rd_min_channels: L of the paper; if None 32 with ``rd_divisor=1``, else none.
        sk_stages: in ``'sk+se'`` the stages with SK; ``stages`` are those with SE.
        fused: ``'auto'`` uses the fused computation where it applies, ``False`` never, ``True`` raises where it
            doesn't apply.
        extra: options of a registered attention that are none of the above, by name.

    Raises:
        ValueError: a value that is not allowed, or an option the attention does not have.
    """

    attn: str = 'se'
    integration: str = 'standard'
    stages: tuple[int, ...] = (1, 2, 3, 4)
    sites: str | None = None
    rd_ratio: float | None = None
    rd_channels: int | None = None
    rd_divisor: int | None = None
    squeeze: str | None = None
    act_layer: str | None = None
    gate: str | None = None
    bias: bool | None = None
    init: Literal['default', 'identity'] = 'default'
    kernels: tuple[int, ...] = (3, 5)
    keep_3x3: bool = True
    groups: int | tuple[int, ...] | None = None
    split_input: bool = False
    select: str = 'softmax'
    rd_min_channels: int | None = None
    sk_stages: tuple[int, ...] = (1, 2, 3, 4)
    fused: bool | Literal['auto'] = 'auto'
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attn, str) or self.attn not in ATTENTIONS:
            raise ValueError(f'attn={self.attn!r} is not a known attention; choose one of {_listed(ATTENTIONS)}, none, '
                             'or register your own with timm_se_plugin.register_attention')
        self._set_types()
        self._set_defaults()
        self._check_values()
        self._check_combinations()

    def _set_types(self) -> None:
        """Give values of a command line or of config.json, which has lists for tuples, the types of the fields."""
        if isinstance(self.rd_ratio, str) and re.fullmatch(r'\d+/0*[1-9]\d*', self.rd_ratio):
            self._set('rd_ratio', float(Fraction(self.rd_ratio)))
        for name in ('stages', 'sk_stages', 'kernels', 'groups'):
            value = getattr(self, name)
            self._set(name, tuple(value) if isinstance(value, list) else value)
        for name in ('stages', 'sk_stages'):
            value = getattr(self, name)
            value = (value,) if _is_count(value) else value
            self._set(name, tuple(sorted(value)) if _are_counts(value) else value)

    def _set_defaults(self) -> None:
        """Replace each None by the attention's default, and complete the options of a registered attention."""
        defaults = self.record.options
        if self.gate is None and 'gate' in defaults:
            self._set('gate', self.record.identity_gate if self.init == 'identity' else defaults['gate'])
        for name, default in defaults.items():
            if name in _FIELDS and getattr(self, name) is None:
                self._set(name, default)
        own = {name: value for name, value in defaults.items() if name not in _FIELDS}
        for name in self.extra:
            if name not in own:
                raise _unknown_option(name, self.record)
        self._set('extra', {name: _as_given(value, own[name]) for name, value in {**own, **self.extra}.items()})

    def _check_values(self) -> None:
        """Raise for an option that the attention does not have, and for a value that the option does not allow."""
        defaults = self.record.options
        for name, value in _own_fields(self):
            if name in self.record.names:
                is_allowed, allowed = _RULES[name]
                if not is_allowed(value) and not (value is None and defaults.get(name, name) is None):
                    raise _not_allowed(name, value, allowed)
            elif value != getattr(AttentionSpec, name):
                raise _unknown_option(name, self.record)

    def _check_combinations(self) -> None:
        """Raise for values that are allowed alone and not together."""
        if isinstance(self.groups, tuple) and len(self.groups) != len(self.kernels):
            raise _not_allowed('groups', self.groups, f'one number, or one for each of the kernels {self.kernels}')
        if self.init == 'identity' and self.gate != self.record.identity_gate:
            raise ValueError(f"attn_gate={self.gate!r} does not start at the identity, as attn_init='identity' asks; "
                             f'choose {self.record.identity_gate}')
        if self.sites is not None:
            for name in ('integration', 'stages'):
                if getattr(self, name) != getattr(AttentionSpec, name):
                    raise ValueError(f'attn_{name}={getattr(self, name)!r} is given beside attn_sites={self.sites!r}, '
                                     'which takes its place; leave one of them out')

    @property
    def record(self) -> Attention:
        """What the package knows of the attention."""
        return ATTENTIONS[self.attn]

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass has no other way

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> 'AttentionSpec':
        """Read ``{'attn': 'se', 'attn_gate': 'tanh', ...}``, the form a model, an mmdet config or config.json has.

        Raises:
            ValueError: an option that does not exist, or a value that is not allowed.
        """
        if 'attn_attn' in kwargs:
            raise ValueError(f"attn_attn={kwargs['attn_attn']!r} is no option; attn names the attention")
        options = {key.removeprefix('attn_'): value for key, value in kwargs.items()}
        attn = options.get('attn', cls.attn)
        record = ATTENTIONS.get(attn) if isinstance(attn, str) else None
        extra = {}
        if record is not None:
            for name in list(options):
                if name not in ('attn', *record.names):
                    raise _unknown_option(name, record)
                if name not in _FIELDS:
                    extra[name] = options.pop(name)
        return cls(**options, extra=extra)

    def updated(self, kwargs: Mapping[str, Any]) -> 'AttentionSpec':
        """This specification with the options in `kwargs`; ``attn_init='identity'`` also sets its gate."""
        options = self.to_kwargs()
        if kwargs.get('attn_init') == 'identity' and self.init != 'identity':
            options.pop('attn_gate', None)
        if kwargs.get('attn_sites') is not None:  # sites replace both
            options.pop('attn_integration', None)
            options.pop('attn_stages', None)
        return self.from_kwargs({**options, **kwargs, 'attn': self.attn})

    @classmethod
    def of(cls, model: nn.Module) -> 'AttentionSpec | None':
        """Attention that the plugin has put into a model; None if it has put none."""
        args = applicable(split_attention_kwargs(dict(getattr(model, '_model_args', {}))))
        return cls.from_kwargs(args) if args.get('attn', 'none') != 'none' else None

    def to_kwargs(self) -> dict[str, Any]:
        """Every option the attention has, as JSON-safe model keywords; the inverse of :meth:`from_kwargs`."""
        values = {**dict(_own_fields(self)), **self.extra}
        return {'attn': self.attn, **{f'attn_{name}': values[name] for name in self.record.names}}

    def differences(self, other: 'AttentionSpec') -> dict[str, tuple[Any, Any]]:
        """Options that make two specifications compute different functions: ``{'attn_gate': (of self, of other)}``."""
        first, second = self.to_kwargs(), other.to_kwargs()
        return {
            key: (first.get(key), second.get(key)) for key in {**first, **second}
            if key.removeprefix('attn_') not in _RUNTIME and _computed(key, first) != _computed(key, second)
        }

    def recalibrates(self, stage: int) -> bool:
        """Whether the blocks of a stage get an attention layer (SE and other recalibrations)."""
        return self.record.recalibrates and self.sites is None and stage in self.stages

    def selects_kernels(self, stage: int) -> bool:
        """Whether the blocks of a stage get a Selective Kernel in the place of their 3x3 convolution."""
        stages = self.sk_stages if 'sk_stages' in self.record.options else self.stages
        return self.record.selects_kernels and stage in stages

    def create(
            self,
            channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Attention layer for `channels` channels. Shape: (N, C, H, W) -> (N, C, H, W)."""
        return self.record.build(channels, {**dict(_own_fields(self)), **self.extra}, device, dtype)

    def create_selective_kernel(self, conv: nn.Conv2d, **kwargs: Any) -> SelectiveKernel:
        """Selective Kernel in the place of a 3x3 convolution, its norm and its activation.

        Args:
            conv: the convolution that is replaced.
            **kwargs: further arguments of :class:`SelectiveKernel`: stride, layers, device, dtype.

        Raises:
            ValueError: options that do not suit the convolution's channels.
        """
        assert self.rd_ratio is not None  # SK has a default
        assert self.rd_divisor is not None
        try:
            return SelectiveKernel(
                conv.in_channels, conv.out_channels, kernels=self.kernels, keep_3x3=self.keep_3x3,
                groups=self.groups or conv.groups, dilation=conv.dilation[0], split_input=self.split_input,
                select=self.select, rd_ratio=self.rd_ratio, rd_channels=self.rd_channels, rd_divisor=self.rd_divisor,
                rd_min_channels=self.rd_min_channels, fused=self.fused, **kwargs)
        except ValueError as error:  # the message begins with the option's name in the layer
            raise ValueError(f'attn_{error}') from error


def split_attention_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take ``attn`` and every ``attn_*`` out of `kwargs`, which timm's constructors refuse; return those not None."""
    taken = {key: kwargs.pop(key) for key in list(kwargs) if key == 'attn' or key.startswith('attn_')}
    return {key: value for key, value in taken.items() if value is not None}


def attention_misfit(
        network: AttentionSpec | None, weights: AttentionSpec | None, ignored: str | tuple[str, ...] = (),
) -> str:
    """Options in which the attention of a network and of weights differ, as text; empty if they agree.

    Args:
        network: the attention that the network has.
        weights: the attention that the weights were trained with.
        ignored: prefixes of options that may differ, such as ``'attn_rd_'``.
    """
    if network is None or weights is None:
        different = {'attn': (network and network.attn, weights and weights.attn)} if network != weights else {}
    else:
        different = network.differences(weights)
    return ', '.join(f'{name}={value!r} (the weights have {other!r})' for name, (value, other) in different.items()
                     if not name.startswith(ignored))


def applicable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a built model's recorded options that its attention has; without attention only ``attn_fused``.

    timm records the arguments of a saved model together with those that the user gives when loading it, and these may
    choose another attention.
    """
    record = ATTENTIONS.get(options.get('attn', 'none'))
    names = ('attn', *(f'attn_{option}' for option in (record.names if record else ('fused',))))
    return {name: options[name] for name in names if name in options}


def is_option(name: str) -> bool:
    """Whether ``attn_…`` is an option of any attention."""
    return any(name == f'attn_{option}' for record in ATTENTIONS.values() for option in record.names)


def _computed(key: str, options: Mapping[str, Any]) -> Any:
    """The value of an option; for an activation, which may have several names, its class."""
    return get_act_layer(options.get(key)) if key == 'attn_act_layer' else options.get(key)


def _as_given(value: Any, default: object) -> Any:
    """A sequence as a tuple, or as a list where the layer's default is one; config.json has lists for both."""
    if not isinstance(value, list | tuple):
        return value
    return list(value) if isinstance(default, list) else tuple(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_is_count(number) for number in value)


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _is_stages(value: Any) -> bool:
    return _are_counts(value) and len(set(value)) == len(value) and max(value) <= 4


def _is_pattern(value: Any) -> bool:
    try:
        return value is None or (isinstance(value, str) and bool(re.compile(value)))
    except re.error:
        return False


def _is_act(value: Any) -> bool:
    try:
        return isinstance(value, str) and get_act_layer(value) is not None
    except KeyError:
        return False


def _one_of(*choices: Any) -> tuple[Callable[[Any], bool], str]:
    def is_allowed(value: Any) -> bool:  # 0 == False, but the layers test `fused is False`
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return is_allowed, f'one of {_listed(choices)}'


def _listed(values: Iterable[Any]) -> str:
    return ', '.join(str(value) for value in values)


# For each option a test of its value, and the test in words; None is allowed wherever it is the attention's default. A
# registered attention checks its own options itself.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'integration': _one_of(*INTEGRATIONS),
    'stages': (_is_stages, "one or more of 1, 2, 3, 4 (timm's layer1 to layer4)"),
    'sites': (_is_pattern, 'a regular expression for module names'),
    'sk_stages': (_is_stages, "one or more of 1, 2, 3, 4 (timm's layer1 to layer4)"),
    'rd_ratio': (_is_fraction, 'a fraction in (0, 1]'),
    'rd_channels': (_is_count, 'a positive integer'),
    'rd_divisor': (_is_count, 'a positive integer'),
    'squeeze': _one_of(*SQUEEZES),
    'act_layer': (_is_act, 'the name of an activation in timm, such as relu, silu or gelu'),
    'gate': _one_of(*GATES),
    'bias': _one_of(True, False),
    'kernels': (
        lambda value: _are_counts(value) and len(value) > 1 and all(size % 2 for size in value),
        'two or more odd sizes'),
    'keep_3x3': _one_of(True, False),
    'groups': (
        lambda value: _is_count(value) or _are_counts(value), 'a positive integer, or one for each kernel'),
    'split_input': _one_of(True, False),
    'select': _one_of(*SELECTS),
    'rd_min_channels': (_is_count, 'a positive integer'),
    'init': _one_of('default', 'identity'),
    'fused': _one_of('auto', True, False),
}


def _not_allowed(name: str, value: Any, allowed: str) -> ValueError:
    hint = f'; did you mean 1/{value}?' if name == 'rd_ratio' and _is_count(value) else ''
    return ValueError(f'attn_{name}={value!r} is not {allowed}{hint}')


def _unknown_option(name: str, record: Attention) -> ValueError:
    options = [f'attn_{option}' for option in record.names]
    close = [] if name in _FIELDS else get_close_matches(f'attn_{name}', options, n=1)  # another attention's option
    hint = f' (did you mean {close[0]}?)' if close else ''
    return ValueError(f'attn={record.name!r} has no option attn_{name}{hint}; it has {_listed(options)}')


_FIELDS = frozenset(field.name for field in fields(AttentionSpec)) - {'extra'}


def _own_fields(spec: AttentionSpec) -> list[tuple[str, Any]]:
    """Name and value of every option that is a field."""
    return [(field.name, getattr(spec, field.name)) for field in fields(spec) if field.name not in ('attn', 'extra')]

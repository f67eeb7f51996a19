"""Comparison of weights with the network that loads them: keys, shapes, attention."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ..placement.finding import attention_keys

__all__ = ['Misfit', 'StateDict', 'checkpoint_filter']

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Misfit:
    """Differences between given weights and those that a network expects; falsy if there are none.

    Args:
        missing: expected keys that are not given.
        unexpected: given keys that are not expected.
        shapes: the given and the expected shape of each key where the two differ.
    """

    missing: Collection[str] = ()
    unexpected: Collection[str] = ()
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any], expected: Mapping[str, Any], ignored: Collection[str] = ()) -> 'Misfit':
        """Compare two state dicts.

        BatchNorm's ``num_batches_tracked`` may be absent from either: files older than PyTorch 0.4.1 do not have it,
        and a norm with constant statistics has none.

        Args:
            given: tensors by key, or their shapes.
            expected: the network's own tensors by key, or their shapes.
            ignored: further keys that one of the two may lack.
        """
        def counts(key: str) -> bool:
            return not key.endswith('num_batches_tracked') and key not in ignored

        both = {key: (_shape(given[key]), _shape(value)) for key, value in expected.items() if key in given}
        return cls(
            frozenset(filter(counts, expected.keys() - given.keys())),
            frozenset(filter(counts, given.keys() - expected.keys())),
            {key: shapes for key, shapes in both.items() if shapes[0] != shapes[1]})

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        shapes = [f'{key} {given} instead of {expected}' for key, (given, expected) in self.shapes.items()]
        parts = {'missing': self.missing, 'unexpected': self.unexpected, 'of another shape': shapes}
        return '; '.join(f'{name} {_shortened(keys)}' for name, keys in parts.items() if keys)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, 'shape', value))


def _shortened(keys: Collection[str]) -> str:
    first = ', '.join(sorted(keys)[:4])
    return first if len(keys) <= 4 else f'{first} and {len(keys) - 4} more'


def checkpoint_filter(
        key_map: Callable[[StateDict], StateDict] | None = None,
        new_attention: bool = False,
        base_filter: Callable[..., StateDict] | None = None,
) -> Callable[[StateDict, nn.Module], StateDict]:
    """Filter for timm's ``pretrained_filter_fn`` that refuses weights which do not fit.

    timm stops checking keys as soon as the number of classes differs, and only logs what was missing; here every
    missing or unexpected key is an error. Shapes are left to timm, which adapts the first convolution and the
    classifier after this filter.

    Args:
        key_map: renames the checkpoint's keys, and leaves keys of the model unchanged.
        new_attention: whether the checkpoint is of a plain network, so that exactly the attention's keys are missing,
            which keep their initial values.
        base_filter: timm's filter for the network, which runs first, on the checkpoint or on checkpoint and model.

    Returns:
        The filter, which raises ValueError.
    """

    def apply(state_dict: StateDict, model: nn.Module) -> StateDict:
        if base_filter is not None:
            takes_model = len(signature(base_filter).parameters) > 1
            state_dict = base_filter(state_dict, model) if takes_model else base_filter(state_dict)
        if key_map is not None:
            state_dict = key_map(state_dict)
        own = model.state_dict()
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # set by timm's builder
        # timm replaces a classifier for another number of classes.
        replaced = cfg['classifier'] if model.num_classes != cfg['num_classes'] else None
        gained = {key: own[key] for key in attention_keys(model)} if new_attention else {}
        expected = {key: value for key, value in own.items() if key not in gained}
        found = Misfit.of(state_dict, expected, ignored=(f'{replaced}.weight', f'{replaced}.bias'))
        misfit = Misfit(found.missing, found.unexpected)
        if misfit:
            raise ValueError(f'the checkpoint does not fit {cfg["architecture"]}: {misfit}')
        return {**state_dict, **gained}

    return apply

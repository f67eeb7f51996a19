"""What a checkpoint may lack, and what it may not."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ..placement import attention_modules

__all__ = ['StateDict', 'checkpoint_filter']

StateDict = dict[str, Tensor]


def checkpoint_filter(
        key_map: Callable[[StateDict], StateDict] | None = None,
        new_attention: bool = False,
        their_filter: Callable[..., StateDict] | None = None,
) -> Callable[[StateDict, nn.Module], StateDict]:
    """Filter for timm's ``pretrained_filter_fn`` that refuses weights which don't fit.

    timm stops checking keys as soon as the number of classes differs, and only logs what was missing; here every
    missing or unexpected key is an error.

    Args:
        key_map: renames the checkpoint's keys; leaves the model's own alone.
        new_attention: the checkpoint is a plain network's: exactly the attention's keys are missing, and keep their
            initial values.
        their_filter: timm's own filter for the network, which comes first; it takes the checkpoint, or that and the
            model.

    Returns:
        The filter; it raises ValueError.
    """

    def apply(state_dict: StateDict, model: nn.Module) -> StateDict:
        if their_filter is not None:
            takes_model = len(signature(their_filter).parameters) > 1
            state_dict = their_filter(state_dict, model) if takes_model else their_filter(state_dict)
        if key_map is not None:
            state_dict = key_map(state_dict)
        expected = model.state_dict()
        # A classifier for other classes is replaced by timm; files older than PyTorch 0.4.1 count no batches.
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # set by timm's builder
        replaced = cfg['classifier'] if model.num_classes != cfg['num_classes'] else None
        ignored = {key for key in expected if key.endswith('num_batches_tracked')}
        ignored |= {f'{replaced}.weight', f'{replaced}.bias'}

        added: set[str] = set()
        if new_attention:
            prefixes = tuple(f'{name}.' for name in attention_modules(model))
            added = {key for key in expected if key.startswith(prefixes)}
        missing = expected.keys() - state_dict.keys() - ignored - added
        unexpected = (state_dict.keys() - expected.keys() - ignored) | (state_dict.keys() & added)
        if missing or unexpected:
            raise ValueError(
                f'the checkpoint does not fit {cfg["architecture"]}: '
                f'missing {shortened(missing)}; unexpected {shortened(unexpected)}')
        return {**state_dict, **{key: expected[key] for key in added}}

    return apply


def shortened(keys: set[str]) -> str:
    first = ', '.join(sorted(keys)[:4]) or 'nothing'
    return first if len(keys) <= 4 else f'{first} and {len(keys) - 4} more'

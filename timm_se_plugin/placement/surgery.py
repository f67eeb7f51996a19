"""Attention for a network that is already built, and its removal."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import timm
import torch
from timm.models._input import update_model_args  # private: timm exports it nowhere
from torch import Tensor, nn

from ..layers import SelectiveKernel
from .attention_layers import ATTENTION_LAYERS
from .families import FAMILIES, Site
from .recalibration import install, is_recalibrated, uninstall
from .residual import AttentionBasicBlock, AttentionBottleneck, attend, attention_channels, detach
from .sites import counted_attention
from .spec import ATTENTIONS, INTEGRATIONS, AttentionSpec

__all__ = ['add_attention', 'meta_pass', 'record_attention', 'remove_attention']

_logger = logging.getLogger(__name__)


_WRAPPERS = (
    'DistributedDataParallel', 'DataParallel', 'FullyShardedDataParallel', 'OptimizedModule', 'ScriptModule',
    'GraphModule')


class _Place(NamedTuple):
    """A module of the network, and where it gets attention."""

    name: str
    module: Any
    tensor: str
    block: Any = None  # that has it for a slot

    @property
    def attention(self) -> str:
        """Name of the attention there."""
        return self.name if self.tensor == 'slot' else f'{self.name}.se'

    @property
    def holder(self) -> nn.Module:
        """The module that has the attention."""
        return self.module if self.block is None else self.block


def add_attention(
        model: nn.Module,
        attn: str | AttentionSpec = 'se',
        *,
        input_size: tuple[int, int, int] | None = None,
        **options: Any,
) -> dict[str, nn.Module]:
    """Give attention to a network that exists: loaded, fine-tuned, part of a detector.

    Where it sits is what ``placement/families.py`` lists for the kinds of blocks that the network has, or what the
    option ``sites`` says. Keys that exist stay, and so do the shapes of all outputs; the attention has the device and
    the type of what it follows. The network is asked for its channels by a pass on the meta device, which computes
    nothing. Nothing is changed where an error is raised. A saved network comes back where there is a name
    ``<base>_plugin`` for it; a warning says where not. timm's ``init_weights``, called after this, draws the weights of
    the attention anew.

    Args:
        model: any network that takes one batch of images.
        attn: the attention, or the whole specification.
        input_size: (C, H, W) of an image; that of the network's configuration if None.
        **options: options of :class:`AttentionSpec`, as ``init='identity'`` for a network that is trained.

    Returns:
        The new attention layers by name.

    Raises:
        ValueError: an option that is not allowed; a network without a known place; one that carries attention there
            already, that computes a place more than once or never, that does not take the image, or that is wrapped for
            parallel training, compiled or scripted.
    """
    spec = attn if isinstance(attn, AttentionSpec) and not options else _specified(attn, options)
    _refuse_wrappers(model)
    spec = _on_its_stages(model, spec)
    places = list(_matching(model, spec.sites) if spec.sites is not None else _of_families(model, spec))
    if spec.fused is True and any(place.tensor != 'block' for place in places):
        raise ValueError(f"attn_fused=True is not allowed for {type(model).__name__}; allowed: 'auto', False")
    _refuse_second_attention(model, places)
    _refuse_shared(model, places)
    channels = _channels(model, spec, places, input_size)
    added = {}
    for place in places:
        layer = spec.create(channels[place.name], **_like(place.holder, model))
        added[place.attention] = layer.train(place.holder.training)

    for place in places:
        attention = added[place.attention]
        if place.tensor == 'block':
            attend(place.module, spec, attention)
        elif place.tensor == 'slot':
            place.block.se = attention
        else:
            install(place.module, attention, 'input' if place.tensor == 'input' else 'output')
    record_attention(model, spec)
    return added


def remove_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Take away the attention that the plugin has put into a network; undoes :func:`add_attention`.

    Args:
        model: any network.

    Returns:
        What was taken away, by name.

    Raises:
        ValueError: the network has no attention that can be taken away.
    """
    _refuse_wrappers(model)
    slots = _slots()
    removed: dict[str, nn.Module] = {}
    old = AttentionSpec.of(model)
    for name, module in _carriers(model):
        path = f'{name}.se' if name else 'se'
        if is_recalibrated(module):
            removed[path] = uninstall(module)
        elif type(module) in slots:
            removed[path] = module.se
            _vacate(module, slots[type(module)])
        else:
            removed[path] = detach(module)
    if not removed and old:
        raise ValueError(f'{type(model).__name__} has attn={old.attn!r} as a part of its blocks; allowed: the network '
                         'built without it')
    if not removed:
        raise ValueError(f'{type(model).__name__} has no attention of the plugin to take away')
    record_attention(model, _selecting(old) if old and old.attn == 'sk+se' else None)
    return removed


def record_attention(model: nn.Module, spec: AttentionSpec | None) -> None:
    """Let ``AttentionSpec.of`` and a saved config.json know the attention that a network carries now.

    A plain timm network is recorded as the plugin's ``<base>_plugin``, where there is one, whose flag is open: the name
    that builds it again.
    """
    update_model_args(model, **(spec.to_kwargs() if spec else {'attn': 'none'}))
    cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
    name = cfg.get('architecture') or ''
    prefix, _, rest = name.partition('_')
    base = (rest if prefix in ATTENTIONS and name.endswith('_plugin') else name).removesuffix('_plugin')
    if name and spec is not None and not timm.is_model(f'{base}_plugin'):
        _logger.warning('there is no %s_plugin: timm cannot build %s with attn=%r again from a config.json',
                        base, name, spec.attn)
    if timm.is_model(f'{base}_plugin') and f'{base}_plugin' != name and not (spec and name.endswith('_plugin')):
        model.pretrained_cfg = model.default_cfg = {**cfg, 'architecture': f'{base}_plugin'}  # type: ignore[assignment]


def _selecting(spec: AttentionSpec) -> AttentionSpec:
    """What remains of SK and SE without SE."""
    kept = {name: value for name, value in spec.to_kwargs().items() if name.removeprefix('attn_') in ATTENTIONS['sk']}
    return AttentionSpec.from_kwargs({**kept, 'attn': 'sk', 'attn_stages': spec.sk_stages})


def _specified(attn: str | AttentionSpec, options: dict[str, Any]) -> AttentionSpec:
    prefixed = {f'attn_{name.removeprefix("attn_")}': value for name, value in options.items()}
    if isinstance(attn, AttentionSpec):
        return attn.updated(prefixed)
    return AttentionSpec.from_kwargs({'attn': attn, **prefixed})


def _refuse_wrappers(model: nn.Module) -> None:
    for module in model.modules():
        kinds = {cls.__name__ for cls in type(module).__mro__}  # a traced network's own class has no other name
        kind = next((kind for kind in _WRAPPERS if kind in kinds), None)
        if kind:
            raise ValueError(f'a {kind} is not allowed; allowed: the network before it is wrapped, compiled or traced')


def _of_families(model: nn.Module, spec: AttentionSpec) -> Iterator[_Place]:
    """Places that the families of the network's blocks name, in its stages and its order."""
    modules = dict(model.named_modules())
    families = FAMILIES.values()
    mine = [family for family in families if any(isinstance(module, family.blocks) for module in modules.values())]
    if not mine:
        kinds = ', '.join(sorted({block.__module__.rpartition('.')[2] for f in families for block in f.blocks}))
        raise ValueError(f'{type(model).__name__} has no known place for attention; '
                         f"allowed: sites='a regular expression for module names', or blocks of timm's {kinds}")
    if spec.attn.startswith('sk'):
        raise ValueError(f'attn={spec.attn!r} is not allowed for a finished {type(model).__name__}: a Selective Kernel '
                         'takes the place of convolutions while timm creates a ResNet, a CIFAR network or a '
                         f'ShuffleNetV2; allowed: {", ".join(a for a in ATTENTIONS if not a.startswith("sk"))}')
    order = {name: index for index, name in enumerate(modules)}
    sites = [site for family in mine for site in family.sites.get(spec.integration, ())]
    found = sorted(
        (place for site in sites for place in _at(modules, site)), key=lambda place: order[_known_name(place, order)])
    if not found:
        allowed = [name for name in INTEGRATIONS if any(name in family.sites for family in mine)]
        raise ValueError(f'attn_integration={spec.integration!r} is not allowed for {type(model).__name__}; '
                         f'allowed: {", ".join(allowed)}')
    if spec.stages != AttentionSpec.stages:
        stage_of = _stages(model, order)
        found = [place for place in found if stage_of(place) in spec.stages]
        if not found:
            raise ValueError(f'{type(model).__name__} has no place for attention in attn_stages={spec.stages!r}')
    yield from found


def _known_name(place: _Place, order: dict[str, int]) -> str:
    """Name of the place's module, or of the block of an empty slot."""
    return place.name if place.name in order else place.name.rpartition('.')[0]


def _at(modules: dict[str, nn.Module], site: Site) -> Iterator[_Place]:
    for block_name, block in modules.items():
        if not isinstance(block, site.blocks):
            continue
        if site.tensor == 'slot':
            if site.where(block, None):
                yield _Place(f'{block_name}.{site.module}', getattr(block, site.module), 'slot', block)
            continue
        for name, module in block.named_modules():
            if re.fullmatch(site.module, name) and site.where(block, module):
                yield _Place('.'.join(filter(None, (block_name, name))), module, site.tensor)


def _matching(model: nn.Module, pattern: str) -> Iterator[_Place]:
    """Places after the modules whose whole name matches."""
    names = [name for name, _ in model.named_modules() if name and re.fullmatch(pattern, name)]
    if not names:
        example = ', '.join(name for name, _ in list(model.named_modules())[1:6])
        raise ValueError(f'attn_sites={pattern!r} matches no module; names are {example}, …')
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f'attn_sites={pattern!r} matches {name}, a {type(module).__name__}, which a conversion to '
                             'SyncBatchNorm replaces; allowed: the module that holds it, or an activation')
        yield _Place(name, module, 'output')


def _refuse_second_attention(model: nn.Module, places: Iterable[_Place]) -> None:
    if any(isinstance(module, SelectiveKernel) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has Selective Kernels; allowed: attn='sk+se' when the network is built")
    carriers = [name for name, _ in _carriers(model)]
    carriers += [place.name for place in places if place.tensor in ('slot', 'block')
                 and counted_attention(place.module if place.module is not None else nn.Identity())]
    carriers += [name or 'its blocks' for name, module in model.named_modules() if _is_recorded(module)]
    if carriers:
        raise ValueError(
            f'{type(model).__name__} carries attention already, at {carriers[0]}; '
            "allowed: remove_attention first, where it is the plugin's")


def _slots() -> dict[type[nn.Module], type[nn.Module] | None]:
    """What timm's blocks with a slot hold in it where they have no attention."""
    sites = (site for family in FAMILIES.values() for sites in family.sites.values() for site in sites)
    return {block: site.empty for site in sites if site.tensor == 'slot' for block in site.blocks}


def _vacate(block: Any, empty: type[nn.Module] | None) -> None:
    if empty is None:
        del block.se  # as timm's block has it: an attribute, and no module that is None
        block.se = None
    else:
        block.se = empty()


def _carriers(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules that hold an attention which the plugin has put there."""
    # timm's own networks fill their slots with layers of the same kinds.
    slots = _slots() if any(map(_is_recorded, model.modules())) else {}
    found = []
    for name, module in model.named_modules():
        if (is_recalibrated(module) and isinstance(module._modules['se'], ATTENTION_LAYERS)) or (
                type(module) in slots and isinstance(getattr(module, 'se', None), ATTENTION_LAYERS)) or (
                isinstance(module, AttentionBasicBlock | AttentionBottleneck) and module.integration != 'none'):
            found.append((name, module))
    return found


def _is_recorded(module: nn.Module) -> bool:
    return bool(AttentionSpec.of(module)) or isinstance(getattr(module, 'attn', None), AttentionSpec)  # a backbone's


def _refuse_shared(model: nn.Module, places: Iterable[_Place]) -> None:
    """A module that is used in two places would recalibrate both."""
    holders = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for place in places:
        if holders[id(place.holder)] > 1:
            raise ValueError(f'{place.name} is not allowed: the network holds the module in more than one place')


def _channels(
        model: nn.Module, spec: AttentionSpec, places: list[_Place], input_size: tuple[int, int, int] | None,
) -> dict[str, int]:
    """Channels of each place, seen in a pass that computes nothing; the plugin's blocks know theirs."""
    known = {place.name: attention_channels(place.module, spec) for place in places if place.tensor == 'block'}
    observed = [place for place in places if place.tensor != 'block']
    if not observed:
        return known
    shapes: dict[str, list[torch.Size | None]] = {place.name: [] for place in observed}
    empty = [place for place in observed if place.module is None]
    for place in empty:
        place.block.se = nn.Identity()  # to be seen
    hooks = []
    for place in observed:
        def see(module: Any, args: Any, output: Any, name: str = place.name, tensor: str = place.tensor) -> None:
            seen = args[0] if tensor == 'input' else output
            shapes[name].append(seen.shape if isinstance(seen, Tensor) else None)

        hooks.append((place.block.se if place.module is None else place.module).register_forward_hook(see))
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()  # a norm of one value in training is an error
        meta_pass(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
        for place in empty:
            _vacate(place.block, None)
    for name, seen in shapes.items():
        if len(seen) != 1:
            times = f'{len(seen)} times' if seen else 'never'
            raise ValueError(f'{name} is not allowed: the network computes it {times} in a pass; allowed: once')
        if seen[0] is None or len(seen[0]) != 4:
            what = 'no tensor' if seen[0] is None else f'the shape {list(seen[0])}'
            raise ValueError(f'{name} is not allowed: its result has {what}; allowed: (N, C, H, W)')
    return {**known, **{name: seen[0][1] for name, seen in shapes.items() if seen[0] is not None}}


@torch.no_grad()
def meta_pass(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> None:
    """Run a network on the meta device, where it computes nothing, for an image of the size that it says."""
    if input_size is None:
        cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
        channels, height, width = cfg.get('input_size') or (3, 224, 224)
        input_size = int(getattr(model, 'in_chans', channels)), height, width
    tensors = chain(model.named_parameters(), model.named_buffers())
    meta = {name: torch.empty_like(tensor, device='meta') for name, tensor in tensors}
    dtype = next((tensor.dtype for tensor in meta.values() if tensor.is_floating_point()), None)
    try:
        torch.func.functional_call(model, meta, (torch.empty(1, *input_size, device='meta', dtype=dtype),))
    except Exception as error:
        raise ValueError(f'{type(model).__name__} does not take an image of {tuple(input_size)} on the meta device '
                         f'({error}); allowed: an input_size that it takes') from error


def _like(module: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Device and type of the parameters nearest to a module."""
    parameters = chain(module.parameters(), model.parameters())
    near = next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))
    return {'device': near.device, 'dtype': near.dtype}


def _last_stage(model: nn.Module) -> int:
    """How many stages a network has that may carry attention: four, or what it says of itself."""
    return int(getattr(model, 'attention_stages', 4))


def _on_its_stages(model: nn.Module, spec: AttentionSpec) -> AttentionSpec:
    last = _last_stage(model)
    if spec.sites is not None or max(spec.stages) <= last:
        return spec
    if spec.stages != AttentionSpec.stages:
        raise ValueError(f'attn_stages={spec.stages!r} is not allowed for {type(model).__name__}; '
                         f'allowed: one or more of {", ".join(map(str, range(1, last + 1)))}')
    return replace(spec, stages=tuple(range(1, last + 1)))


def _stages(model: nn.Module, order: dict[str, int]) -> Callable[[_Place], int]:
    """Stage of a place: the last stage ends with the last of the network's feature levels, and so on."""
    info: Any = getattr(model, 'feature_info', None)
    if not isinstance(info, list):
        raise ValueError(f'attn_stages is not allowed for {type(model).__name__}, which has no feature_info; '
                         'allowed: all stages, or attn_sites')

    def end(module: str) -> int:
        return max(order[name] for name in order if f'{name}.'.startswith(f'{module}.'))

    ends = [end(level['module']) for level in info]

    def stage_of(place: _Place) -> int:
        name = _known_name(place, order)
        at = order[name] - 1 if place.tensor == 'input' else end(name)
        level = next((i for i, last in enumerate(ends) if at <= last), len(ends) - 1)
        return max(1, level - len(ends) + 1 + _last_stage(model))

    return stage_of

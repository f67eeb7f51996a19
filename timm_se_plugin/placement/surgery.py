"""Attention for a network that is built, and its removal: the one way in which attention enters any network."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import SelectiveKernel
from .attentions import ATTENTIONS, OWN, attention_layers
from .families import FAMILIES, RESIDUAL_BLOCKS, Family, KernelSite, Site, is_of, is_of_type
from .finding import counted_attention
from .recalibration import attention_in, install, uninstall
from .record import OPEN_NAMES, TIMM_NAMES, is_recorded, record_attention
from .residual import (
    AttentionBlock,
    attend,
    attention_channels,
    detach,
    initialise_as_timm,
    run_fused,
    start_norms,
    starts_closed,
)
from .selective import select_kernels
from .spec import INTEGRATIONS, AttentionSpec
from .stem import run_stems
from .structure import check_network, image_size, run_structure, structure_of

__all__ = ['add_attention', 'check_stages', 'last_stage', 'place_attention', 'remove_attention', 'run_blocks_fused',
           'vacate_blocks']


class _Kernel(NamedTuple):
    """A block of the network that gets a Selective Kernel."""

    name: str
    module: nn.Module
    site: KernelSite
    tensor: str = 'block'


class _Place(NamedTuple):
    """A module of the network, and where it gets attention."""

    name: str
    module: Any
    tensor: str
    block: Any = None  # the block that has the slot

    @property
    def holder(self) -> nn.Module:
        """The module that gets the attention as a child."""
        return self.module if self.block is None else self.block


def add_attention(
        model: nn.Module,
        attn: str | AttentionSpec = 'se',
        *,
        input_size: tuple[int, int, int] | None = None,
        **options: Any,
) -> dict[str, nn.Module]:
    """Add attention to a network that exists: loaded, fine-tuned, part of a detector.

    The places are those that ``placement/families.py`` lists for the network's kinds of blocks, or those of the option
    ``sites``. Existing keys and the shapes of all outputs stay; the attention has the device and the dtype of the
    module that it follows. The numbers of channels are found by a pass through a copy of the network on the meta
    device. If an error is raised, the network is unchanged. timm can load the saved network again if there is a name
    ``<base>_plugin`` for it; a warning says if there is none. timm's ``init_weights``, called after this, draws the
    weights of the attention anew.

    Args:
        model: any network that takes one batch of images.
        attn: the attention, or the whole specification.
        input_size: (C, H, W) of an image; if None, the size in the network's configuration.
        **options: options of :class:`AttentionSpec`, such as ``init='identity'`` for a trained network.

    Returns:
        The new attention layers by name.

    Raises:
        ValueError: an invalid option; `model` is no network; or a network that has no known place, carries attention
            there already, computes a place more than once or never, does not accept the image, or whose parameters are
            owned by a wrapper (parallel training, sharding, compilation, scripting).
    """
    check_network(model)
    spec = _specified(attn, options)
    _refuse_owned(model)
    if spec.record.selects_kernels:
        others = ', '.join(name for name, record in ATTENTIONS.items() if not record.selects_kernels)
        raise ValueError(
            f'attn={spec.attn!r} cannot be added to a network that exists: a Selective Kernel takes the place of '
            "trained 3x3 convolutions; build the network with it, timm.create_model('resnet50_plugin', attn='sk'), or "
            f'add one of {others}')
    return place_attention(model, spec, input_size)


def place_attention(
        model: nn.Module, spec: AttentionSpec, input_size: tuple[int, int, int] | None = None,
) -> dict[str, nn.Module]:
    """Put the attention that a specification asks for into a network, Selective Kernels included, and record it.

    Args:
        model: the network.
        spec: the attention.
        input_size: (C, H, W) of an image; if None, the size in the network's configuration.

    Returns:
        The new attention layers by name.

    Raises:
        ValueError: as :func:`add_attention`.
    """
    _refuse_second_attention(model)
    spec = check_stages(spec, last_stage(model))
    places, kernels = _matching(model, spec.sites) if spec.sites is not None else _of_families(model, spec)
    if spec.fused is True and any(place.tensor != 'block' for place in places):
        raise ValueError(f'attn_fused=True is not possible in {type(model).__name__}, whose attention follows no '
                         "BatchNorm of a residual block; choose 'auto' or False")
    _refuse_attention_of_timm(model, places)
    _refuse_shared(model, places)
    channels = _channels(model, spec, places, input_size)
    layers = {place: spec.create(channels[place], **_like(place.holder, model)).train(place.holder.training)
              for place in places}
    for kernel in kernels:
        select_kernels(kernel.module, kernel.site, spec)
    added: dict[str, nn.Module] = {}
    try:
        for place, layer in layers.items():
            added[_fill(place, spec, layer)] = layer
    except Exception:
        for place in list(layers)[:len(added)]:
            _empty(place.holder)
        raise
    for place, layer in layers.items():
        if spec.sites is None and spec.integration == 'standard' and starts_closed(layer):
            in_block = place.tensor == 'block'
            start_norms(place.module if in_block else model.get_submodule(place.name.rpartition('.')[0]))
    for kernel in kernels:
        if is_of_type(kernel.module, RESIDUAL_BLOCKS):
            run_fused(kernel.module, spec.fused)
    run_stems(model)
    record_attention(model, spec)
    return added


def remove_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Remove the attention that the plugin has put into a network; the inverse of :func:`add_attention`.

    Args:
        model: any network.

    Returns:
        The removed layers by name.

    Raises:
        ValueError: `model` is no network, it has no attention of the plugin, or a wrapper owns its parameters.
    """
    check_network(model)
    _refuse_owned(model)
    carriers = _carriers(model)
    if not carriers:
        raise ValueError(f'{type(model).__name__} has no attention of the plugin that could be taken away')
    removed = {}
    for name, module in carriers:
        attention, child = _empty(module)
        removed[f'{name}.{child}' if name else child] = attention
    for part in model.modules():  # the model, or a part of it that has gained attention by itself
        spec = AttentionSpec.of(part)
        if spec is None or not spec.record.recalibrates:
            continue
        left = _without_se(spec) if spec.record.selects_kernels else None
        if left:
            for block in part.modules():
                if is_of_type(block, RESIDUAL_BLOCKS) and any(isinstance(m, SelectiveKernel) for m in block.children()):
                    run_fused(block, left.fused)
        record_attention(part, left)
    run_stems(model)
    return removed


def _without_se(spec: AttentionSpec) -> AttentionSpec:
    """The specification of SK that is left of SK and SE."""
    names = ATTENTIONS['sk'].names
    kept = {name: value for name, value in spec.to_kwargs().items() if name.removeprefix('attn_') in names}
    return AttentionSpec.from_kwargs({**kept, 'attn': 'sk', 'attn_stages': spec.sk_stages})


def _specified(attn: str | AttentionSpec, options: dict[str, Any]) -> AttentionSpec:
    if attn == 'none':
        raise ValueError("attn='none' adds nothing; call remove_attention to take attention away")
    prefixed = {f'attn_{name.removeprefix("attn_")}': value for name, value in options.items()}
    if isinstance(attn, AttentionSpec):
        return attn.updated(prefixed)
    return AttentionSpec.from_kwargs({'attn': attn, **prefixed})


# Wrappers for parallel training, compilation, scripting and tracing; FSDPModule is what FSDP2's fully_shard makes of a
# network's class.
_OWNERS = ('DistributedDataParallel', 'DataParallel', 'FullyShardedDataParallel', 'FSDPModule', 'DeepSpeedEngine',
           'OptimizedModule', 'ScriptModule', 'GraphModule')


def _refuse_owned(model: nn.Module) -> None:
    for module in model.modules():
        kinds = {cls.__name__ for cls in type(module).__mro__}  # by name, since a traced network's class is made anew
        kind = next((kind for kind in _OWNERS if kind in kinds), None)
        if kind:
            raise ValueError(f'a {kind} owns its parameters and does not see new ones; change the network before it is '
                             'wrapped, sharded, compiled or traced')
        if module._compiled_call_impl is not None:  # hooks are not among what dynamo compiles the network again for
            raise ValueError(f'a {type(module).__name__} whose compile() has been called may go on without what is '
                             'added, or with what is removed; change the network before it is compiled')


def _fill(place: _Place, spec: AttentionSpec, layer: nn.Module) -> str:
    """Put a layer into its place; return its name in the network."""
    if place.tensor == 'block':
        if spec.attn in OWN:
            initialise_as_timm(layer)
        attend(place.module, layer, spec.integration, spec.fused)
        return f'{place.name}.se'
    if place.tensor == 'slot':
        place.block.se = layer
        return place.name
    return f"{place.name}.{install(place.module, layer, 'input' if place.tensor == 'input' else 'output')}"


def _empty(holder: Any) -> tuple[nn.Module, str]:
    """Remove the attention from the module that holds it; return the attention and its name there."""
    if isinstance(holder, AttentionBlock) and holder.integration != 'none':
        return detach(holder), 'se'
    child = attention_in(holder)
    if child is not None:
        return uninstall(holder), child
    attention = holder.se
    _vacate(holder, next(site.empty for site in _slots() if is_of(holder, site.blocks)))
    return attention, 'se'


def _slots() -> list[Site]:
    """Sites where timm's blocks have a slot for attention."""
    return [site for family in FAMILIES.values() for sites in family.sites.values() for site in sites
            if site.tensor == 'slot']


def _vacate(block: Any, empty: type[nn.Module] | None) -> None:
    if empty is None:
        del block.se  # in timm's blocks an empty slot is a plain attribute
        block.se = None
    else:
        block.se = empty()


def run_blocks_fused(model: nn.Module, fused: bool | str) -> None:
    """Let the residual blocks of a network without attention run by the fused path.

    Blocks for which timm has built an attention keep it, and run as timm's.

    Raises:
        ValueError: `fused` is not True, False or ``'auto'``; or True for a network without residual blocks of timm's,
            or with attention in them.
    """
    if not isinstance(fused, bool) and fused != 'auto':
        raise ValueError(f"attn_fused={fused!r} is not one of auto, True, False")
    blocks = [block for block in model.modules() if is_of_type(block, RESIDUAL_BLOCKS)]
    if fused is True and not blocks:
        raise ValueError(f"attn_fused={fused!r} without attn concerns timm's residual blocks, and a "
                         f'{type(model).__name__} has none; leave the option out')
    if fused is True and any(block.se is not None for block in blocks):
        raise ValueError(f"attn_fused={fused!r} is not possible with attention that timm has built from block_args; "
                         'name the attention by attn, or leave the option out')
    for block in blocks:
        if block.se is None:
            run_fused(block, fused)
    run_stems(model)


def vacate_blocks(model: nn.Module) -> None:
    """Remove the attention that timm has built from the residual blocks of a network."""
    for block in model.modules():
        if is_of_type(block, RESIDUAL_BLOCKS) and block.se is not None:
            _vacate(block, None)


def _of_families(model: nn.Module, spec: AttentionSpec) -> tuple[list[_Place], list[_Kernel]]:
    """Places that the families of the network's blocks name, in the stages asked for, in the network's order."""
    modules = dict(model.named_modules())
    families = _families_of(model)
    order = {name: index for index, name in enumerate(modules)}
    sites = [site for family in families for site in family.sites.get(spec.integration, ())]
    places = sorted((place for site in sites for place in _places_at(modules, site)),
                    key=lambda place: order[_known_name(place, order)])
    kernels = [_Kernel(name, block, site) for family in families for site in family.kernels
               for name, block in modules.items() if is_of_type(block, site.blocks)]
    _refuse_impossible(model, spec, families, places, kernels)
    if all(stages == AttentionSpec.stages for stages in (spec.stages, spec.sk_stages)):
        return places if spec.record.recalibrates else [], kernels if spec.record.selects_kernels else []
    stage_of = _stages(model, order)
    places = [place for place in places if spec.recalibrates(stage_of(place))]
    kernels = [kernel for kernel in kernels if spec.selects_kernels(stage_of(kernel))]
    if not places and not kernels:
        raise ValueError(f'{type(model).__name__} has no place for attention in attn_stages={spec.stages!r}; choose '
                         'other stages')
    return places, kernels


def _families_of(model: nn.Module) -> list[Family]:
    """The families to which blocks of the network belong.

    Raises:
        ValueError: there are none.
    """
    found = [family for family in FAMILIES.values() if any(is_of(module, family.blocks) for module in model.modules())]
    if not found:
        raise ValueError(f'{type(model).__name__} has no known place for attention, unlike {", ".join(FAMILIES)}; name '
                         "the modules with sites='a regular expression for module names'")
    return found


def _refuse_impossible(
        model: nn.Module, spec: AttentionSpec, families: list[Family], places: list[_Place], kernels: list[_Kernel],
) -> None:
    """Raise for an integration or a Selective Kernel that the blocks of the network cannot have."""
    blocks = ', '.join(sorted({type(block).__name__ for block in model.modules()
                               if any(is_of(block, family.blocks) for family in families)}))
    network = f'{type(model).__name__} with the blocks {blocks}'
    if not places:
        others = [name for name in INTEGRATIONS if any(name in family.sites for family in families)]
        if spec.integration in others:
            raise ValueError(f'{type(model).__name__} has no known place for attention: {blocks} may compute something '
                             "else than timm's block; name the modules with sites='a regular expression for module "
                             "names'")
        raise ValueError(f'attn_integration={spec.integration!r} is not possible in {network}; '
                         f'choose {" or ".join(others)}')
    if spec.record.selects_kernels and not kernels:
        allowed = ', '.join(name for name, record in ATTENTIONS.items() if not record.selects_kernels)
        raise ValueError(
            f'attn={spec.attn!r} is not possible in {network}: a Selective Kernel takes the place of a 3x3 convolution '
            "in timm's BasicBlock and Bottleneck of ResNets, in networks for CIFAR and in ShuffleNetV2; choose one of "
            f'{allowed}')


def _known_name(place: '_Place | _Kernel', order: dict[str, int]) -> str:
    """Name of the place's module, or of the block of an empty slot."""
    return place.name if place.name in order else place.name.rpartition('.')[0]


def _places_at(modules: dict[str, nn.Module], site: Site) -> Iterator[_Place]:
    """The places of a site in the network with these modules."""
    for block_name, block in modules.items():
        if site.tensor == 'block':
            if is_of_type(block, site.blocks) or _is_plain(block):
                yield _Place(block_name, block, 'block')
        elif not is_of(block, site.blocks):
            continue
        elif site.tensor == 'slot':
            if site.where(block, None):
                yield _Place(f'{block_name}.{site.module}', getattr(block, site.module), 'slot', block)
        else:
            for name, module in block.named_modules():
                if re.fullmatch(site.module, name) and site.where(block, module):
                    yield _Place('.'.join(filter(None, (block_name, name))), module, site.tensor)


def _is_plain(block: nn.Module) -> bool:
    """Whether a block runs fused without attention (:func:`run_blocks_fused`)."""
    return isinstance(block, AttentionBlock) and block.integration == 'none' and not any(
        isinstance(child, SelectiveKernel) for child in block.children())


def _matching(model: nn.Module, pattern: str) -> tuple[list[_Place], list[_Kernel]]:
    """Places after the modules whose full name matches; no kernels."""
    names = [name for name, _ in model.named_modules() if name and re.fullmatch(pattern, name)]
    if not names:
        example = ', '.join(name for name, _ in list(model.named_modules())[1:6])
        raise ValueError(f'attn_sites={pattern!r} matches no module; names are {example}, …')
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f'attn_sites={pattern!r} matches {name}, a {type(module).__name__}, which a conversion to '
                             'SyncBatchNorm replaces; name the module that holds it, or an activation')
    return [_Place(name, model.get_submodule(name), 'output') for name in names], []


def _refuse_second_attention(model: nn.Module) -> None:
    """Raise for a network that carries attention of the plugin."""
    if any(isinstance(module, SelectiveKernel) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has Selective Kernels; build it with attn='sk+se' instead")
    carriers = [name for name, _ in _carriers(model)]
    carriers += [name or 'its blocks' for name, module in model.named_modules() if is_recorded(module)]
    if carriers:
        raise ValueError(f'{type(model).__name__} carries attention already, at {carriers[0]}; call remove_attention '
                         'first')


def _refuse_attention_of_timm(model: nn.Module, places: Iterable[_Place]) -> None:
    """Raise for a block that timm has built with attention."""
    carriers = [place.name for place in places if place.tensor in ('slot', 'block') and place.module is not None
                and counted_attention(place.module)]
    if carriers:
        name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
        opened = name if name in OPEN_NAMES else TIMM_NAMES.get(name or '')
        instead = f'build {opened} with another attn, or name' if opened else 'name'
        raise ValueError(f"{type(model).__name__} carries attention already, timm's own, at {carriers[0]}; {instead} "
                         "modules with sites='a regular expression for module names'")


def _carriers(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules that hold an attention placed by the plugin, with their names."""
    layers = attention_layers()
    # timm fills slots with layers of the same classes, so slots count only in networks that have a record.
    slots = tuple(block for site in _slots() for block in site.blocks) if any(map(is_recorded, model.modules())) else ()
    found = []
    for name, module in model.named_modules():
        child = attention_in(module)
        if (child and isinstance(module.get_submodule(child), layers)) or (
                isinstance(module, AttentionBlock) and module.integration != 'none') or (
                slots and is_of(module, slots) and isinstance(getattr(module, 'se', None), layers)):
            found.append((name, module))
    return found


def _refuse_shared(model: nn.Module, places: Iterable[_Place]) -> None:
    """Raise for a module that the network holds twice, whose attention would recalibrate both places."""
    holders = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for place in places:
        if holders[id(place.holder)] > 1:
            raise ValueError(f'{place.name} cannot carry attention: the network holds the module in more than one '
                             'place')


def _channels(
        model: nn.Module, spec: AttentionSpec, places: list[_Place], input_size: tuple[int, int, int] | None,
) -> dict[_Place, int]:
    """Channels of each place: timm's residual blocks state them, and a pass on the meta device shows the others."""
    known = {place: attention_channels(place.module, spec.integration) for place in places if place.tensor == 'block'}
    observed = [place for place in places if place.tensor != 'block']
    if not observed:
        return known
    structure = structure_of(model)
    shapes: dict[_Place, list[torch.Size | None]] = {place: [] for place in observed}
    for place in observed:
        def see(module: Any, args: Any, place: _Place = place) -> None:
            shapes[place].append(args[0].shape if args and isinstance(args[0], Tensor) else None)

        # A module in the attention's place sees what attention would get, also where a container calls its children.
        probe = nn.Identity()
        probe.register_forward_pre_hook(see)
        if place.tensor == 'slot':
            structure.get_submodule(place.name.rpartition('.')[0]).se = probe  # type: ignore[assignment]
        else:
            install(structure.get_submodule(place.name), probe, 'input' if place.tensor == 'input' else 'output')
    size = input_size or image_size(model)
    try:
        run_structure(structure, size)
    except ValueError:
        if not any(None in seen for seen in shapes.values()):  # else this is why, and is said below
            raise
    found = {place: list(seen) for place, seen in shapes.items()}
    channels, height, width = size
    if height != width:
        for seen in shapes.values():
            seen.clear()
        with suppress(ValueError):  # a network for images of one size tells no more
            run_structure(structure, (channels, width, height))
    for place, seen in found.items():
        obstacle = _why_not_attended(seen, shapes[place])
        if obstacle:
            raise ValueError(f'{place.name} cannot carry attention: {obstacle}')
    return {**known, **{place: seen[0][1] for place, seen in found.items() if seen[0] is not None}}


def _why_not_attended(seen: list[torch.Size | None], turned: list[torch.Size | None]) -> str:
    """Why attention is impossible where a pass shows tensors of these shapes; an empty string if it is possible.

    Args:
        seen: the shapes for an image.
        turned: those for an image with height and width exchanged, as far as they are known.
    """
    if None in seen:
        return 'its result, or what one of its children gets, is no tensor'
    if len(seen) != 1:
        times = f'{len(seen)} times' if seen else 'not at all'
        return f'a forward pass would compute the attention {times} instead of once'
    shape = list(seen[0] or ())
    if len(shape) != 4:
        return f'its result has the shape {shape}, not (N, C, H, W)'
    # Maps of a square image are square, so that two equal numbers before another one are height and width; for others,
    # height and width change places, and the number of channels stays.
    other = list(turned[0] or ()) if len(turned) == 1 else []
    is_last = len(other) == 4 and (shape[1] != other[1] or (shape == other and shape[1] == shape[2] != shape[3]))
    return f'its result has the shape {shape} with the channels last, not (N, C, H, W)' if is_last else ''


def _like(module: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's first parameter, or else of the network's."""
    parameters = chain(module.parameters(), model.parameters())
    near = next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))
    return {'device': near.device, 'dtype': near.dtype}


def last_stage(model: nn.Module) -> int:
    """Number of stages that may carry attention: the network's ``attention_stages``, or four."""
    return int(getattr(model, 'attention_stages', 4))


def check_stages(spec: AttentionSpec, last: int, given: Collection[str] = ()) -> AttentionSpec:
    """`spec` limited to the stages that a network has.

    Args:
        spec: the attention.
        last: number of the network's stages.
        given: options that the user has named, such as ``'attn_stages'``, even with the default's value.

    Raises:
        ValueError: the user has named a stage that the network does not have.
    """
    if spec.sites is not None:
        return spec
    for name in ('stages', 'sk_stages'):
        stages = getattr(spec, name)
        if name not in spec.record.names or max(stages) <= last:
            continue
        if stages != getattr(AttentionSpec, name) or f'attn_{name}' in given:
            raise ValueError(f'attn_{name}={stages!r} names a stage that the network does not have; choose one or more '
                             f'of {", ".join(map(str, range(1, last + 1)))}')
        whole: dict[str, Any] = {name: tuple(range(1, last + 1))}
        spec = replace(spec, **whole)
    return spec


def _stages(model: nn.Module, order: dict[str, int]) -> Callable[['_Place | _Kernel'], int]:
    """A function from a place to its stage: the last stage ends with the last feature level, and so on backwards."""
    info: Any = getattr(model, 'feature_info', None)
    if not isinstance(info, list):
        raise ValueError(f'attn_stages is not possible in {type(model).__name__}, which has no list of feature '
                         'levels (feature_info); leave the option out for all stages, name modules with attn_sites, or '
                         'give the part of the network that has the list')

    def end(module: str) -> int:
        inside = [order[name] for name in order if f'{name}.'.startswith(f'{module}.')]
        if not inside:
            raise ValueError(f'attn_stages is not possible in {type(model).__name__}, whose feature level {module!r} '
                             'is not the name of a module; leave the option out for all stages, or name modules with '
                             'attn_sites')
        return max(inside)

    ends = [end(level['module']) for level in info]

    def stage_of(place: '_Place | _Kernel') -> int:
        name = _known_name(place, order)
        at = order[name] - 1 if place.tensor == 'input' else end(name)
        level = next((i for i, last in enumerate(ends) if at <= last), len(ends) - 1)
        return max(1, level - len(ends) + 1 + last_stage(model))

    return stage_of

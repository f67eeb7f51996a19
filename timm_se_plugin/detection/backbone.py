"""Any timm network as an MMDetection backbone, with the attention that ``attn`` names."""

import logging
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import Format, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import FeatureListNet, checkpoint_seq, load_model_config_from_hf, split_model_name_tag
from timm.models._hub import load_model_config_from_path  # private: timm exports only the function above, for the Hub
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..files.hub_files import HUB, SAVED_AT
from ..models._registry import architectures
from ..models._resolution import is_place, resolve_unseen
from ..models.state_dicts import Misfit
from ..placement import AttentionSpec, attention_modules
from ..placement.finding import attention_keys, restart_identity
from ..placement.record import OPEN_NAMES, compare_state_dicts
from ..placement.spec import attention_misfit
from ..weights.mm_config import registered_backbone

__all__ = ['TimmAttentionBackbone']

_NORMS = ('BN', 'SyncBN', 'FrozenBN')


@MODELS.register_module()
@DETECTION_MODELS.register_module()
class TimmAttentionBackbone(BaseModule):
    """timm's ``features_only`` network as a backbone, with the state-dict keys of that network.

    The configuration alone decides which attention the backbone has and what is frozen. Weights are read in
    ``init_weights()`` only, so that building and testing need neither network nor files. A resumed training reads them
    again, since MMEngine calls ``init_weights()`` before it loads the checkpoint. timm's weights expect RGB images that
    are normalised with the tag's ``mean`` and ``std``. Where ``pretrained`` weights lack the SE that ``attn='se'``
    adds, every gate starts at exactly 1: at first the features are those of the plain network.

    Shape: (N, C, H, W) -> a tuple, (N, out_channels[i], H / strides[i], W / strides[i]) for each of ``out_indices``.

    Args:
        model_name: a name of timm or of the plugin, with or without a tag. ``resnet50`` builds ``resnet50_plugin``,
            which is the same network and takes ``attn``.
        attn: the attention: ``'se'``, ``'sk'``, …
        out_indices: timm's feature levels; in a ResNet, 0 is the stem and 1 to 4 are ``layer1`` to ``layer4``.
        frozen_stages: the last of the levels to freeze, with all levels before; -1 freezes nothing.
        norm_eval: keep BatchNorm on running statistics in training.
        norm_cfg: ``type`` 'BN', 'SyncBN' (which is 'BN' in a single process) or 'FrozenBN' (constant statistics,
            weight and bias), and ``requires_grad`` for weight and bias.
        pretrained: the weights: True for the default tag, another tag, a file, or a model that timm saved,
            ``'hf-hub:…'`` or ``'local-dir:…'``. Weights that do not fit are refused, as by ``timm.create_model``. The
            options of a saved model's attention have to be repeated here, since the saved configuration is read in
            ``init_weights()`` only.
        freeze_attention: whether attention in frozen stages is frozen too. By default it is if the ``pretrained``
            weights contain that attention. Attention that the weights lack is trained, and then the activations of its
            stage are kept for the backward pass, as in a stage that is not frozen.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        model_args: further arguments of timm's network, such as ``output_stride`` or ``drop_path_rate``.
        init_cfg: as for MMEngine; ``Pretrained`` takes checkpoints with the backbone's keys, which for a ResNet are
            timm's and torchvision's, and ``prefix``. `pretrained` takes files with timm's keys for every network.
        **attn_options: options of ``attn``, such as ``attn_gate``, as for a model.

    Raises:
        ValueError: an unknown name, option, tag or level; attention that the network cannot have; weights that do not
            fit.
    """

    feature_info: Any

    def __init__(
            self,
            model_name: str,
            attn: str | None = None,
            out_indices: Sequence[int] = (1, 2, 3, 4),
            frozen_stages: int = -1,
            norm_eval: bool = False,
            norm_cfg: dict[str, Any] | None = None,
            pretrained: bool | str = False,
            freeze_attention: bool | None = None,
            with_cp: bool = False,
            model_args: dict[str, Any] | None = None,
            init_cfg: dict | list[dict] | None = None,
            **attn_options: Any,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained and self._has_checkpoint():
            raise ValueError(f'pretrained={pretrained!r} and init_cfg of type Pretrained both name weights; give one')
        options = {'attn': attn, **attn_options} if attn else attn_options
        self.model_name, self.pretrained = registered_backbone(model_name, pretrained)
        _check_name(model_name, self.model_name, options)
        _check_tag(model_name, self.model_name, self.pretrained)
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self._model_args = dict(model_args or {})
        self._asked = options
        arch = architectures.get(self.model_name)
        self._options, gains_attention = resolve_unseen(arch, options, self.pretrained) if arch else ({}, False)

        net = self._create(out_indices)
        self.attn = AttentionSpec.of(net)
        compare_state_dicts(self)
        self.feature_info = net.feature_info
        self.out_channels = tuple(self.feature_info.channels())
        self.strides = tuple(self.feature_info.reduction())
        for module in net.modules():  # modules with this attribute recompute their blocks; else forward() does
            if with_cp and hasattr(module, 'grad_checkpointing'):
                module.grad_checkpointing = True
        self._is_nhwc = getattr(net, 'output_fmt', None) == Format.NHWC
        self._by_layer = isinstance(net, FeatureListNet)
        if self._by_layer:
            for child, layer in net.items():
                self.add_module(child, layer)  # not inside `net`, which would change timm's keys
            self._returned = frozenset(net.return_layers)
        else:  # timm's wrapper keeps the network in one piece
            self.net = net
        self._set_norms(norm_cfg or {})

        self._frozen = self._layers_until(frozen_stages)
        is_trained = bool(pretrained) and not gains_attention
        self._freezes_attention = is_trained if freeze_attention is None else freeze_attention
        for layer in self._frozen_layers():
            layer.requires_grad_(False)
            for attention in self._learning(layer):
                attention.requires_grad_(True)

    def _create(self, out_indices: Sequence[int] | None, **weights: Any) -> Any:
        levels = {} if out_indices is None else {'out_indices': tuple(out_indices)}
        classifier = {'num_classes': 0} if self.model_name in architectures else {}
        args = {**classifier, **self._model_args, **levels, **(weights.pop('options', None) or self._options)}
        try:
            if levels and not (out_indices and all(type(i) is int and i >= 0 for i in out_indices)):
                raise IndexError
            return timm.create_model(self.model_name, features_only=True, **args, **weights)
        except (IndexError, AssertionError) as error:
            if out_indices is None:
                raise
            modules = [f"{i} ({info['module']})" for i, info in enumerate(self._create(None).feature_info.info)]
            raise ValueError(f'out_indices={out_indices!r} are not levels of {self.model_name}, which has '
                             f'{", ".join(modules)}') from error

    def _set_norms(self, cfg: dict[str, Any]) -> None:
        unknown = sorted(cfg.keys() - {'type', 'requires_grad'})
        if unknown:
            raise ValueError(f'norm_cfg has the keys {", ".join(unknown)}; only type and requires_grad are used')
        kind = cfg.get('type', 'BN')
        if kind not in _NORMS:
            raise ValueError(f'norm_cfg has type={kind!r}, which is none of {", ".join(_NORMS)}')
        # In a single process MMEngine's Runner replaces SyncBN by BN, without the activation in norms of timm.
        if kind == 'SyncBN' and is_distributed():
            convert_sync_batchnorm(self)
        elif kind == 'FrozenBN':
            freeze_batch_norm_2d(self)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not cfg.get('requires_grad', True):
                module.requires_grad_(False)

    def _layers_until(self, level: int) -> tuple[str, ...]:
        names = [info['module'].replace('.', '_') for info in self.feature_info.info]
        if type(level) is not int or not -1 <= level < len(names):
            raise ValueError(f'frozen_stages={level!r} is not a level of {self.model_name}; give a number from 0 to '
                             f'{len(names) - 1}, or -1 to freeze nothing')
        if level < 0:
            return ()
        if not self._by_layer:
            raise ValueError(f'frozen_stages={level} is not possible for {self.model_name}, whose features timm does '
                             'not compute layer by layer; give -1')
        layers = list(self._modules)
        return tuple(layers[:layers.index(names[level]) + 1] if names[level] in layers else layers)

    def _frozen_layers(self) -> Iterator[nn.Module]:
        return (self.get_submodule(name) for name in self._frozen)

    def _learning(self, layer: nn.Module) -> list[nn.Module]:
        """The attention layers in a frozen layer that are trained all the same."""
        return [] if self._freezes_attention else list(attention_modules(layer).values())

    def train(self, mode: bool = True) -> 'TimmAttentionBackbone':
        """Set training mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        if mode:
            for layer in self._frozen_layers():
                layer.eval()
                for attention in self._learning(layer):
                    attention.train()
            for module in self.modules():
                if self.norm_eval and isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features. Shape: as for the class."""
        outs = []
        if self._by_layer:
            for i, (name, layer) in enumerate(self._modules.items()):
                recompute = self.with_cp and i > 0 and isinstance(layer, nn.Sequential) and torch.is_grad_enabled()
                x = checkpoint_seq(layer, x) if recompute else layer(x)  # type: ignore[misc]
                if name in self._returned:
                    outs.append(x)
        else:
            outs = self.net(x)
        return tuple(out.permute(0, 3, 1, 2) if self._is_nhwc else out for out in outs)

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``, then load ``pretrained`` weights."""
        is_first = not self.is_init
        super().init_weights()
        if is_first and not self._has_checkpoint():
            restart_identity(self)
        if is_first and self.pretrained:
            self._load_pretrained()

    def _has_checkpoint(self) -> bool:
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        return any(config['type'] == 'Pretrained' for config in configs)

    def _load_pretrained(self) -> None:
        """Take the weights from a second network, which timm builds with all checks of ``timm.create_model``."""
        place = str(self.pretrained)
        if place.startswith(SAVED_AT):
            read = load_model_config_from_hf if place.startswith(HUB) else load_model_config_from_path
            cfg, name, saved = read(place.partition(':')[2])
            arch = architectures.get(self.model_name)
            brought = arch.attn if arch and not arch.accepts_attn else None  # which the base's weights lack
            fitting = {self.model_name, *((arch.source and arch.source.timm_name, not brought and arch.base)
                                          if arch else ())}
            if name not in fitting:
                opened = OPEN_NAMES.get(self.model_name, '')
                way_out = f'model_name={name!r} is the network that they fit'
                if brought and not brought.record.selects_kernels and name in (opened, opened.removesuffix('_plugin')):
                    way_out = f'model_name={opened!r} with attn={brought.attn!r} adds the attention to them'
                raise ValueError(f'{place} holds a {name}, whose weights do not fit {self.model_name}; {way_out}')
            weights: dict[str, Any] = dict(
                pretrained_cfg=cfg, pretrained_model_args=saved or {}, options=self._asked)
        elif is_place(place):
            if not Path(place).is_file():
                raise FileNotFoundError(f'pretrained={place!r} is not a file')
            weights = dict(pretrained_cfg_overlay=dict(file=place))
        else:
            weights = {} if self.pretrained is True else dict(pretrained_cfg=place)
        try:
            trained = self._create(self.feature_info.out_indices, pretrained=True, **weights)
        except OSError as error:
            raise ConnectionError(
                f'pretrained={self.pretrained!r} of {self.model_name}: the weights cannot be fetched ({error}); '
                '--cfg-options model.backbone.pretrained=False model.backbone.frozen_stages=-1 '
                'model.backbone.norm_eval=False starts without them') from error
        different = attention_misfit(self.attn, AttentionSpec.of(trained))
        if different:
            raise ValueError(
                f'{place} has other attention than the configuration, whose attn options have to agree: {different}')
        state = trained.state_dict()
        self.load_state_dict({key: state[key.removeprefix('net.')] for key in self.state_dict()})
        if 'pretrained_cfg_overlay' not in weights:  # of a file, nothing says how its pictures were normalised
            self.pretrained_cfg = trained.pretrained_cfg

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a checkpoint of another network, of which MMEngine would only log the missing keys."""
        # Other parts of a checkpoint, such as a classifier or stages that out_indices leave out, do no harm.
        given = {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}
        given = {key: value for key, value in given.items() if key.split('.')[0] in self._modules}
        attention = attention_keys(self)
        gains_attention = bool(attention) and not attention & given.keys()
        misfit = Misfit.of(given, self.state_dict(), ignored=attention if gains_attention else ())
        if misfit:
            raise ValueError(f'the checkpoint does not fit {self.model_name}: {misfit}. A file with timm\'s own keys '
                             'is given by pretrained=FILE')
        if gains_attention:
            restart_identity(self)
            print_log(f'the checkpoint has no attention for {self.model_name}, whose attention starts with attn_init='
                      f"{self.attn and self.attn.init!r}; 'identity' would keep what the checkpoint computes",
                      'current', logging.WARNING)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_name(asked: str, name: str, options: dict[str, Any]) -> None:
    for option in options:
        if option != 'attn' and not option.startswith('attn_'):
            raise ValueError(f'TimmAttentionBackbone has no argument {option!r}; arguments of the network itself go '
                             'into model_args')
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f'model_name={asked!r} is not a timm model{": did you mean " if close else ""}'
                         f'{" or ".join(close)}{"?" if close else ""}')
    if options and name not in architectures:
        raise ValueError(f'{name} takes no attention ({", ".join(options)}): there is no {name}_plugin')


def _check_tag(asked: str, name: str, pretrained: bool | str) -> None:
    tag = split_model_name_tag(asked)[1]
    tags = sorted({split_model_name_tag(known)[1] for known in timm.models.get_arch_pretrained_cfgs(name)} - {''})
    if tag and tag not in tags:
        raise ValueError(f'{name} has no tag {tag!r}; its tags: {", ".join(tags) or "none"}')
    if tag and isinstance(pretrained, str) and pretrained != tag:
        raise ValueError(f'model_name={asked!r} and pretrained={pretrained!r} name different weights; give one')

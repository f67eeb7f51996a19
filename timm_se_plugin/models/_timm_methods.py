"""Methods that timm's networks have, for networks that lack them."""

from typing import Any

import torch
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices  # private: timm exports it nowhere
from timm.models.resnet import ResNet
from torch import Tensor, nn

__all__ = ['Completed', 'LayerByLayer']


class Completed:
    """Gradient checkpointing and the classifier's name, for a class whose next base is the network.

    A class names its classifier in ``classifier_name``, and reads ``grad_checkpointing`` in its forward pass.
    """

    classifier_name = 'fc'
    __constants__ = ('classifier_name',)  # a scripted network keeps it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grad_checkpointing = False

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of modules for the backward pass, and compute the rest again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        network: Any = self
        return self.classifier_name if name_only else network.get_submodule(self.classifier_name)


class LayerByLayer(Completed):
    """Feature levels of a network whose features come from its layers, one after the other, and its classifier ``fc``.

    A class has timm's ``feature_info`` as a list, in ``layer_names`` the names of the layers in their order, and in
    ``checkpointed`` the names of those that gradient checkpointing computes again, if these are not all.
    """

    reset_classifier = ResNet.reset_classifier  # the attributes have the same names

    @torch.jit.ignore
    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's: the levels at `indices`, and the result of ``forward_features``.

        Args:
            x: images.
            indices: the number of last levels, a list of levels, or None for all.
            norm: ignored, since the network does not end in a norm.
            stop_early: leave out the layers after the last level in `indices`, unless this is the network's last.
            output_fmt: ``'NCHW'``.
            intermediates_only: return only the levels; the layers after the network's last level are left out.

        Raises:
            ValueError: another ``output_fmt``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt={output_fmt!r} is not NCHW, the only format of this network')
        network: Any = self
        levels = [info['module'] for info in network.feature_info]
        take, last = feature_take_indices(len(levels), indices)
        names = network.layer_names
        checkpointed = getattr(network, 'checkpointed', names) if self.grad_checkpointing else ()
        end = levels[last if stop_early else -1]
        if intermediates_only or end != levels[-1]:
            names = names[:names.index(end) + 1]
        intermediates = []
        for name in names:
            layer = network.get_submodule(name)
            parts = layer if isinstance(layer, nn.Sequential) else [layer]
            x = checkpoint_seq(parts, x) if name in checkpointed else layer(x)
            if name in [levels[i] for i in take]:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """timm's: remove the layers after the last level in `indices`; returns the indices that are kept."""
        network: Any = self
        take, last = feature_take_indices(len(network.feature_info), indices)
        is_cut = last < len(network.feature_info) - 1
        if is_cut:
            level = network.feature_info[last]
            for name in network.layer_names[network.layer_names.index(level['module']) + 1:]:
                setattr(self, name, nn.Sequential())
            network.num_features = network.head_hidden_size = level['num_chs']
        if prune_head or is_cut:
            network.reset_classifier(0, '')
        return take

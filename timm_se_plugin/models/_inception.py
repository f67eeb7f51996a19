"""timm's Inceptions, completed by gradient checkpointing and the classifier's name."""

from types import FunctionType
from typing import Any

import torch
from timm.models import checkpoint_seq
from timm.models.inception_resnet_v2 import InceptionResnetV2
from timm.models.inception_v3 import InceptionV3
from timm.models.inception_v4 import InceptionV4
from torch import Tensor, nn

from ._timm_methods import Completed

__all__ = ['CheckpointedInceptionResnetV2', 'CheckpointedInceptionV3', 'CheckpointedInceptionV4', 'without_auxiliary']


def _renamed(method: Any, name: str) -> FunctionType:
    """A method under another name, so that TorchScript compiles it beside the method that overrides it."""
    copy = FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__kwdefaults__ = method.__kwdefaults__
    copy.__annotations__ = dict(method.__annotations__)
    return copy


def _layers(model: Any) -> list[nn.Module]:
    """The layers in the order of timm's ``layer_names``; sequences are replaced by their parts."""
    layers = [model.get_submodule(name) for name in model.layer_names]
    return [part for layer in layers for part in (layer if isinstance(layer, nn.Sequential) else (layer,))]


class CheckpointedInceptionV3(Completed, InceptionV3):
    """timm's ``InceptionV3``."""

    aux_logits: torch.jit.Final[bool]  # type: ignore[misc]  # TorchScript looks for it in the class itself
    _forward_preaux = _renamed(InceptionV3.forward_preaux, '_forward_preaux')
    _forward_postaux = _renamed(InceptionV3.forward_postaux, '_forward_postaux')

    def forward_preaux(self, x: Tensor) -> Tensor:
        """As timm's: the layers before the auxiliary classifier."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(_layers(self)[:-3], x)
        return self._forward_preaux(x)

    def forward_postaux(self, x: Tensor) -> Tensor:
        """As timm's: the layers after the auxiliary classifier."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(_layers(self)[-3:], x)
        return self._forward_postaux(x)


class CheckpointedInceptionV4(Completed, InceptionV4):
    """timm's ``InceptionV4``."""

    classifier_name = 'last_linear'
    _forward_features = _renamed(InceptionV4.forward_features, '_forward_features')

    def forward_features(self, x: Tensor) -> Tensor:
        """As timm's."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.features, x)
        return self._forward_features(x)


class CheckpointedInceptionResnetV2(Completed, InceptionResnetV2):
    """timm's ``InceptionResnetV2``."""

    classifier_name = 'classif'
    _forward_features = _renamed(InceptionResnetV2.forward_features, '_forward_features')

    def forward_features(self, x: Tensor) -> Tensor:
        """As timm's."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(_layers(self), x)
        return self._forward_features(x)


def without_auxiliary(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint without an auxiliary classifier that the network lacks, or with the network's own if it has none."""
    expected = model.state_dict()
    kept = {key: value for key, value in state_dict.items() if not key.startswith('AuxLogits.') or key in expected}
    own = {key: value for key, value in expected.items() if key.startswith('AuxLogits.')}
    return {**own, **kept}

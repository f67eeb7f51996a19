"""MMEngine's configurations, parsed without running them, and the attention of the backbone in one."""

import ast
from collections.abc import Mapping
from typing import Any

from timm.models import split_model_name_tag

from ..models._registry import architecture_of, architectures
from ..models._resolution import requested, resolve_unseen
from ..placement import AttentionSpec

__all__ = ['backbone_attention', 'backbone_config', 'parse_config', 'registered_backbone', 'type_name']


def parse_config(text: str) -> dict[str, Any]:
    """The variables of a configuration as MMEngine writes it, parsed without running it.

    Raises:
        ValueError: the text has more than names with numbers, strings, lists, tuples and dicts.
    """
    try:
        lines = [line for line in ast.parse(text).body if not isinstance(line, ast.Expr)]
        return {ast.unparse(line.targets[0]): _literal(line.value) for line in lines}  # type: ignore[attr-defined]
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f'the configuration is refused, since it has more than names and values: {error}') from error


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)


def type_name(config: Any) -> str:
    """Name of the class that a part of a configuration builds, without its scope; empty for what is no such part.

    ``type`` may be ``'ResNet'``, ``'mmdet.ResNet'`` or the class itself.
    """
    kind = config.get('type', '') if isinstance(config, Mapping) else ''
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def backbone_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``model.backbone`` of the configuration in a checkpoint of MMEngine; an empty dict if there is none.

    Args:
        meta: the checkpoint's ``meta``, in which ``cfg`` is the text of the configuration.
    """
    text = meta.get('cfg')
    return dict(parse_config(text).get('model', {}).get('backbone') or {}) if isinstance(text, str) else {}


def registered_backbone(model_name: str, pretrained: bool | str = False) -> tuple[str, bool | str]:
    """The network that ``TimmAttentionBackbone`` builds, and the weights that it starts from.

    Args:
        model_name: a name of timm or of the plugin, with or without tag.
        pretrained: True, a tag, or the location of weights.

    Returns:
        The registered name, which for ``resnet50`` is ``resnet50_plugin`` (the same network, which takes ``attn``);
        and `pretrained`, in which the tag of `model_name` replaces True.
    """
    name, tag = split_model_name_tag(model_name)
    arch = architecture_of(name)
    return arch.name if arch else name, tag if tag and pretrained is True else pretrained


def backbone_attention(backbone: Mapping[str, Any]) -> AttentionSpec:
    """Attention of a backbone: ``TimmAttentionBackbone``, or MMDetection's ResNet with one ``SEPlugin``.

    Args:
        backbone: the backbone's configuration.

    Raises:
        ValueError: the configuration names no attention, or attention where timm's blocks have none.
    """
    options = {key: value for key, value in backbone.items() if key == 'attn' or key.startswith('attn_')}
    name, weights = registered_backbone(str(backbone.get('model_name')), backbone.get('pretrained') or False)
    arch = architectures.get(name)
    if arch:
        attn = requested(arch, resolve_unseen(arch, options, weights)[0])
        options = attn.to_kwargs() if attn else {}
    plugins = [plugin for plugin in backbone.get('plugins') or [] if type_name(plugin['cfg']) == 'SEPlugin']
    if len(plugins) == 1:
        cfg = {key: value for key, value in plugins[0]['cfg'].items() if key not in ('type', 'postfix')}
        position = 'after_conv2' if backbone.get('depth') in (18, 34) else 'after_conv3'
        if plugins[0]['position'] != position:
            raise ValueError(f"the checkpoint's SEPlugin has the position {plugins[0]['position']}; timm's block has "
                             f'attention at {position}')
        stages = plugins[0].get('stages') or (True,) * 4
        options = {'attn': 'se', 'attn_init': 'identity', **{f'attn_{key}': value for key, value in cfg.items()},
                   'attn_stages': [i for i, has in enumerate(stages, start=1) if has]}
    if 'attn' not in options:
        raise ValueError('the checkpoint has attention, but does not say which: it has no configuration with a '
                         'TimmAttentionBackbone or a single SEPlugin')
    return AttentionSpec.from_kwargs(options)

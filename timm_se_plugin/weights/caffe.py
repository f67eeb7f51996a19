"""Files and layer names of the SENet authors' Caffe release (github.com/hujie-frank/SENet)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.state_dicts import StateDict

__all__ = ['INPUT', 'caffe_keys', 'caffe_layers', 'is_caffe']

# The prototxt files subtract 104, 117, 123 from BGR values up to 255. timm's mean and std are for RGB values up to 1.
INPUT = {'mean': (123 / 255, 117 / 255, 104 / 255), 'std': (1 / 255,) * 3}

# Name of a Caffe layer, without /bn or /bn/scale -> names of ResNet's convolution and norm.
_STEM = {
    'conv1/7x7_s2': ('conv1', 'bn1'),
    'conv1_1/3x3_s2': ('conv1.0', 'conv1.1'), 'conv1_2/3x3': ('conv1.3', 'conv1.4'), 'conv1_3/3x3': ('conv1.6', 'bn1'),
}
_BLOCK = {
    '1x1_reduce': ('conv1', 'bn1'), '3x3': ('conv2', 'bn2'), '1x1_increase': ('conv3', 'bn3'),
    '1x1_proj': ('downsample.0', 'downsample.1'), '1x1_down': ('se.fc1', ''), '1x1_up': ('se.fc2', ''),
}


def is_caffe(keys: Any) -> bool:
    """Whether state-dict keys are names of Caffe's layers."""
    return any('_1x1_reduce' in key for key in keys)


def _conv_and_norm(layer: str) -> tuple[str, str] | None:
    if layer in _STEM:
        return _STEM[layer]
    found = re.fullmatch(r'conv(\d)_(\d+)_(\w+)', layer)
    if found is None or found[3] not in _BLOCK:
        return None
    block = f'layer{int(found[1]) - 1}.{int(found[2]) - 1}'
    conv, norm = _BLOCK[found[3]]
    return f'{block}.{conv}', f'{block}.{norm}'


def caffe_keys(state_dict: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Caffe's blobs as ResNet's weights, and the name of the blob of each weight.

    Caffe's BatchNorm layer holds the mean, the variance and a factor to divide both by; the Scale layer after it holds
    weight and bias. The first convolution's input channels are reordered from BGR to RGB.

    Args:
        state_dict: blobs by the name ``<layer>.<number>``.
    """
    weights: StateDict = {}
    origin: dict[str, str] = {}

    def put(key: str, blob: str, value: Tensor) -> None:
        weights[key], origin[key] = value, blob

    for blob, value in state_dict.items():
        layer, _, number = blob.rpartition('.')
        kind = 'weight' if number == '0' else 'bias'
        if layer == 'classifier':
            put(f'fc.{kind}', blob, value.flatten(0, -2) if number == '0' else value.flatten())
        elif layer.endswith('/bn/scale'):
            names = _conv_and_norm(layer.removesuffix('/bn/scale'))
            put(f'{names[1]}.{kind}' if names else blob, blob, value.flatten())
        elif layer.endswith('/bn'):
            names = _conv_and_norm(layer.removesuffix('/bn'))
            if names and number != '2':
                factor = float(state_dict[f'{layer}.2'].flatten()[0]) or 1.0
                put(f'{names[1]}.running_{"mean" if number == "0" else "var"}', blob, value.flatten() / factor)
        else:
            names = _conv_and_norm(layer)
            first = layer in ('conv1/7x7_s2', 'conv1_1/3x3_s2')
            put(f'{names[0]}.{kind}' if names else blob, blob, value.flip(1) if first else value)
    return weights, origin


def caffe_layers(path: str | Path) -> StateDict:
    """Blobs of a ``.caffemodel`` file by the name ``<layer>.<number>``.

    Reading needs the ``protobuf`` package, which comes with the ``[export]`` extra.

    Raises:
        ValueError: the file is not a network of Caffe, or a blob's number of values contradicts its shape.
    """
    from google.protobuf.message import DecodeError

    net = _net_parameter()()
    try:
        net.ParseFromString(Path(path).read_bytes())
    except DecodeError as error:
        raise ValueError(f'{path} is not a .caffemodel: {error}') from error
    blobs = {}
    for layer in net.layer:
        for i, blob in enumerate(layer.blobs):
            shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
            values = torch.from_numpy(np.array(blob.data, dtype=np.float32))  # torch.tensor would read number by number
            if len(values) != torch.Size(shape).numel():
                raise ValueError(f'{path} is broken: blob {i} of layer {layer.name} has {len(values)} values for the '
                                 f'shape {shape}')
            blobs[f'{layer.name}.{i}'] = values.view(shape)
    if not blobs:
        raise ValueError(f'{path} is not a .caffemodel: it has no layer with weights')
    return blobs


def _net_parameter() -> Any:
    """Message class with the fields of ``caffe.NetParameter`` that hold weights, numbered as in Caffe's caffe.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name='timm_se_plugin/caffe.proto', package='timm_se_plugin.caffe')
    field = descriptor_pb2.FieldDescriptorProto
    messages: dict[str, list[tuple[str, int, int, int, str]]] = {
        'BlobShape': [('dim', 1, field.LABEL_REPEATED, field.TYPE_INT64, '')],
        'BlobProto': [
            *((name, number, field.LABEL_OPTIONAL, field.TYPE_INT32, '')
              for number, name in enumerate(('num', 'channels', 'height', 'width'), start=1)),
            ('data', 5, field.LABEL_REPEATED, field.TYPE_FLOAT, ''),
            ('shape', 7, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, 'BlobShape')],
        'LayerParameter': [
            ('name', 1, field.LABEL_OPTIONAL, field.TYPE_STRING, ''),
            ('blobs', 7, field.LABEL_REPEATED, field.TYPE_MESSAGE, 'BlobProto')],
        'NetParameter': [('layer', 100, field.LABEL_REPEATED, field.TYPE_MESSAGE, 'LayerParameter')],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, label, kind, type_name in fields:
            added = message.field.add(name=field_name, number=number, label=label, type=kind)
            if type_name:
                added.type_name = f'.timm_se_plugin.caffe.{type_name}'
            if kind in (field.TYPE_INT64, field.TYPE_FLOAT):
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('timm_se_plugin.caffe.NetParameter'))

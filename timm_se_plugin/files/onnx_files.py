"""ONNX files that say in their metadata what they are for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .packages import require
from .version import __version__

__all__ = ['CLASSIFIER', 'DETECTOR', 'described', 'int8_file', 'onnx_session', 'open_onnx_file']

CLASSIFIER, DETECTOR = 'image-classification', 'object-detection'  # values of 'task', as the Hub names them
_KEY = 'timm_se_plugin'  # of the entry in a file's metadata
_COMMANDS = {CLASSIFIER: 'timm-se predict', DETECTOR: 'timm-se detect predict'}


def described(path: Path, task: str, description: Mapping[str, Any]) -> bytes:
    """Content of an ONNX file with a description in its metadata.

    Args:
        path: the ONNX file, which does not change.
        task: what the file is for.
        description: JSON-safe values; `task` and the version of this package are added.
    """
    import onnx

    model = onnx.load(path)
    # In ASCII, since a class name with a byte that is not UTF-8, as old archives have, has no other encoding.
    text = json.dumps({'task': task, **description, 'version': __version__})
    onnx.helper.set_model_props(model, {_KEY: text})
    return model.SerializeToString()


def int8_file(file: str | Path) -> Path:
    """Where the same network lies in 8-bit integers: ``NAME-int8.onnx`` beside ``NAME.onnx``."""
    return Path(file).with_name(f'{Path(file).stem}-int8.onnx')


def onnx_session(file: str | Path | bytes) -> Any:
    """ONNX Runtime's session on the CPU for a file, given by its path or its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about the graph, which the user has not written
    return onnxruntime.InferenceSession(file if isinstance(file, bytes) else str(file), options,
                                        providers=['CPUExecutionProvider'])


def open_onnx_file(file: str | Path, task: str) -> tuple[Any, dict[str, Any]]:
    """Open a file of ``timm-se export``: ONNX Runtime's session on the CPU, and the description.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: ONNX Runtime is not installed.
        ValueError: the file is broken, does not say what its pictures need, or is for another task.
    """
    require('export', 'onnxruntime')
    if not Path(file).is_file():
        raise FileNotFoundError(f'there is no file {file}')
    try:
        session = onnx_session(file)
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ValueError(f'{file} is not an ONNX file that ONNX Runtime reads: {error}') from error
    text = session.get_modelmeta().custom_metadata_map.get(_KEY)
    if text is None:
        raise ValueError(f'{file} does not say what its pictures need; timm-se export writes files that do')
    description = json.loads(text)
    found = description.get('task', CLASSIFIER)  # the first version wrote classifiers only, and no task
    if found != task:
        raise ValueError(f'{file} is for {found}; {_COMMANDS.get(found, "another program")} takes the file')
    return session, description

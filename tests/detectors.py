"""Detectors for tests: options that make one small, and configurations that are parsed once."""

import functools
from pathlib import Path
from typing import Any

# For a Faster R-CNN with a ResNet backbone, whose structure stays that of the configuration.
SMALL = {
    'model.neck.out_channels': 16, 'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16, 'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 16, 'model.backbone.model_args': dict(layers=(1, 1, 1, 1)),
}


@functools.cache
def _parsed(path: Path) -> Any:
    from mmengine.config import Config
    return Config.fromfile(path)  # which reads all of MMDetection's index for each base


def configuration(path: str | Path) -> Any:
    """A copy of a configuration, which MMEngine does not format when it writes it: that takes seconds."""
    from mmengine.config import Config
    parsed = _parsed(Path(path))
    return Config(parsed.to_dict(), filename=parsed.filename, format_python_code=False)

"""Share a model, a detector or what a training left behind, with whatever is known about it."""

import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..files.hub_files import CONFIG, FOLDER, read_config_json
from ..weights.folders import write_model
from ..weights.model_card import Facts, classifier_card
from ..weights.runs import read_run
from ..weights.upload import Shared, listed, merged_card, upload

__all__ = ['push_to_hub']

# What timm's config.json may say about a model and does not need to build it.
_DESCRIBED = ('label_names', 'label_descriptions', 'license', 'description', 'tags', 'paper_ids', 'paper_name')


def push_to_hub(
        source: nn.Module | str | Path,
        repo_id: str,
        facts: Facts | None = None,
        revision: str | None = None,
        private: bool = False,
        message: str = 'Add model',
        token: str | None = None,
        dry_run: bool = False,
) -> Shared:
    """Share on the Hugging Face Hub: safetensors, a configuration and a model card.

    ``timm.create_model('hf-hub:user/repo', pretrained=True)`` loads a classifier again, and
    ``timm_se_plugin.detection.hub.pull_detector('hf-hub:user/repo')`` a detector.

    Args:
        source: a model of timm, a detector of MMDetection with its configuration in ``.cfg``, or a folder: one that
            this package or timm saved a model in, or that a training left (of a classifier by this package or timm's
            train.py, of a detector by MMEngine).
        repo_id: ``'user/repo'``.
        facts: what the model does not know about itself, for the card.
        revision: a branch, made if it isn't there.
        private: make the repository private.
        message: of the commit.
        token: to write with; the one that is logged in if None.
        dry_run: write everything, send nothing.

    Returns:
        Every file with its size, the texts, and the commit.

    Raises:
        ValueError: something that can't be shared, and why.
        HfHubHTTPError: what the Hub refuses, and why.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(source, Path(folder), repo_id, facts or Facts(), revision)
        if not dry_run:
            return upload(folder, repo_id, revision, private, message, token)
        card = Path(folder, 'README.md')
        card.write_text(merged_card(None, card.read_text(encoding='utf-8')), encoding='utf-8')
        return listed(folder)


def _write(source: Any, folder: Path, repo_id: str, facts: Facts, revision: str | None) -> None:
    if isinstance(source, nn.Module):
        if hasattr(source, 'dataset_meta') or hasattr(source, 'data_preprocessor'):
            from ..detection.hub import write_detector
            write_detector(source, folder, repo_id, facts, revision)
        else:
            _write_classifier(source, folder, repo_id, facts, revision)
        return
    path = Path(source)
    if (path / CONFIG).is_file():
        said = read_config_json(f'{FOLDER}{path}')
        if 'architecture' in said:
            source = timm.create_model(f'{FOLDER}{path}', pretrained=True)
            described = {name: said[name] for name in _DESCRIBED if name in said}
            return _write_classifier(source, folder, repo_id, facts, revision, model_config=described)
        from ..detection.hub import pull_detector
        source = pull_detector(f'{FOLDER}{path}')
    elif (path / 'last_checkpoint').is_file():
        from ..detection.hub import load_trained_detector
        source = load_trained_detector(path)
    elif run := read_run(path):
        given = {field.name: getattr(facts, field.name) for field in fields(facts)}
        facts = replace(run.facts, **{name: value for name, value in given.items() if value is not None})
        names = {'label_names': run.label_names} if run.label_names else {}
        return _write_classifier(run.model, folder, repo_id, facts, revision, run.data_config, names)
    else:
        raise ValueError(
            f'{path} is not allowed; allowed: a folder with {CONFIG} (a saved model), model_best.pth.tar or '
            'last.pth.tar (a trained classifier), or last_checkpoint (a trained detector)')
    return _write(source, folder, repo_id, facts, revision)


def _write_classifier(
        model: nn.Module, folder: Path, repo_id: str, facts: Facts, revision: str | None,
        data_config: dict[str, Any] | None = None, model_config: dict[str, Any] | None = None,
) -> None:
    written = write_model(model, folder, model_config, data_config)
    card = classifier_card(written, repo_id, facts, revision)
    Path(folder, 'README.md').write_text(card, encoding='utf-8')

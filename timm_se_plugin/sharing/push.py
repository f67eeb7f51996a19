"""Share a model, a detector or the result of a training, with a model card."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..files.hub_files import BEST, CONFIG, FOLDER, LAST, read_config_json
from ..models.names import trained_model
from ..placement.structure import check_network
from ..weights.facts import Facts
from ..weights.folders import description_in, origin_of_outputs, write_model
from ..weights.runs import MULTILABEL, read_run
from .cards import classifier_card, detector_card
from .upload import Shared, listed, merged_card, upload

__all__ = ['push_to_hub']


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
    """Share on the Hugging Face Hub: weights as safetensors, a configuration and a model card.

    ``timm.create_model('hf-hub:user/repo', pretrained=True)`` loads a classifier again, and
    ``timm_se_plugin.detection.hub.pull_detector('hf-hub:user/repo')`` a detector.

    Args:
        source: a model of timm; a detector of MMDetection with its configuration in ``.cfg``; or a folder, of a model
            saved by this package or timm, or of a training: of a classifier by this package or timm's train.py, or
            of a detector by MMEngine.
        repo_id: ``'user/repo'``.
        facts: what the model itself cannot tell, for the card; these go before what the folder of a training tells.
        revision: a branch, which is created if it does not exist; ``main`` if None.
        private: whether a new repository is private.
        message: message of the commit.
        token: token with write access; if None, that of the logged-in user.
        dry_run: whether to write all files and send none.

    Returns:
        The size of every file, the content of the text files, and the address of the commit.

    Raises:
        ValueError: the model cannot be shared, or `repo_id` is no name of a repository; the message says why.
        FileNotFoundError: the folder does not exist.
        HfHubHTTPError: the Hub refuses; the message says why.
        ConnectionError: the Hub cannot be reached, or the transfer of a large file breaks off.
    """
    validate_repo_id(repo_id)
    if '/' not in repo_id:
        raise ValueError(f'the repository {repo_id!r} lacks the name of its user or organisation; give user/{repo_id}')
    with tempfile.TemporaryDirectory() as folder:
        model, facts, options = _loaded(source, facts or Facts())
        if hasattr(model, 'dataset_meta') or hasattr(model, 'data_preprocessor'):
            from ..detection.hub import write_detector
            write_detector(model, folder)
            text = detector_card(model, repo_id, facts, revision)
        else:
            if facts.license:
                options['model_config'] = {**options.get('model_config', {}), 'license': facts.license}
            is_multilabel = options.get('model_config', {}).get('problem_type') == MULTILABEL
            text = classifier_card(write_model(model, folder, **options), repo_id, facts, revision, is_multilabel)
        card = Path(folder, 'README.md')
        card.write_text(merged_card(None, text) if dry_run else text, encoding='utf-8')
        return listed(folder) if dry_run else upload(folder, repo_id, revision, private, message, token)


def _loaded(source: nn.Module | str | Path, facts: Facts) -> tuple[nn.Module, Facts, dict[str, Any]]:
    """The model, the facts about it, and options for :func:`write_model`."""
    if not isinstance(source, str | Path):
        check_network(source)
        return source, facts, {'model_config': origin_of_outputs(source)}
    path = Path(str(source).removeprefix(FOLDER))
    if path.is_file():
        raise ValueError(f'{path} is a file; give the folder of a training or of a saved model, such as {path.parent}')
    if not path.is_dir():
        raise FileNotFoundError(f'there is no folder {path.absolute()}')
    if (path / CONFIG).is_file():
        saved = f'{FOLDER}{path}'
        config = read_config_json(saved)
        if 'architecture' in config:
            model = trained_model(saved)
            facts = replace(facts, license=facts.license or config.get('license'))
            return model, facts, {'model_config': description_in(config, model)}
    if (path / CONFIG).is_file() or (path / 'last_checkpoint').is_file():
        from ..detection.hub import open_detector
        return open_detector(str(path)), facts, {}
    run = read_run(path)
    if run is None:
        raise ValueError(
            f'{path} has nothing to share: neither the {CONFIG} of a saved model, nor the {BEST} or '
            f'{LAST} of a trained classifier, nor the last_checkpoint of a trained detector')
    own = run.facts if facts.results is None else replace(run.facts, results_file=None)
    given = {name: value for name, value in vars(facts).items() if value is not None}
    return run.model, replace(own, **given), {
        'data_config': run.data_config, 'model_config': run.model_config}

"""A model as a folder in timm's format for the Hub, and such a folder as a commit there."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..placement import AttentionSpec

__all__ = ['Shared', 'plugin_config', 'upload', 'write_model']

# What is between these lines of a card is ours; the rest of a card that has them is its owner's.
_BEGIN, _END = '<!-- written by timm_se_plugin: begin -->', '<!-- written by timm_se_plugin: end -->'


@dataclass(frozen=True)
class Shared:
    """What was written and where it is.

    Args:
        files: size in bytes of each file.
        texts: content of those that are text.
        url: the commit; None if nothing was sent.
    """

    files: Mapping[str, int]
    texts: Mapping[str, str]
    url: str | None = None


def plugin_config(attn: AttentionSpec | None) -> dict[str, Any]:
    """What is said about the plugin in ``config.json``: its version and the attention."""
    from .. import __version__
    return {'version': __version__, 'attention': attn and attn.to_kwargs()}


def write_model(
        model: nn.Module, folder: str | Path, model_config: Mapping[str, Any] | None = None,
        data_config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Write ``model.safetensors`` and ``config.json`` as timm does, and make sure that they give the model back.

    The model stays as it is, on its device, in its memory format and mode.

    Args:
        model: what ``timm.create_model`` made, wrapped or not (DDP, ``torch.compile``).
        folder: where to.
        model_config: as for timm's ``save_for_hf``; ``label_names``, for example.
        data_config: as for timm's ``save_for_hf``: the preprocessing that the weights were trained with.

    Returns:
        The model as it will be loaded, on the CPU.

    Raises:
        ValueError: not a timm model, or one whose name and arguments do not give it back.
    """
    network: Any = unwrap_model(model)
    if not all(hasattr(network, name) for name in ('pretrained_cfg', '_model_args', 'num_classes')):
        raise ValueError(f'{type(network).__name__} is not allowed; allowed: a model that timm.create_model made')
    network = copy.deepcopy(network).cpu().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()  # safetensors refuses channels_last
    save_for_hf(
        network, str(folder), safe_serialization=True, data_config=data_config and dict(data_config),
        model_config={**(model_config or {}), 'timm_se_plugin': plugin_config(AttentionSpec.of(network))})
    name = network.pretrained_cfg['architecture']
    try:
        loaded: Any = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{name} would not come back from its config.json, so it is not shared ({error}); allowed: a model as '
            'timm.create_model made it, with other weights; of one from fuse_for_inference share the original'
        ) from error
    _check_equal(network.float(), loaded)
    return loaded


@torch.no_grad()
def _check_equal(network: Any, loaded: Any) -> None:
    size = loaded.pretrained_cfg['input_size']
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    expected, found = network(x), loaded(x)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{loaded.pretrained_cfg['architecture']} computes something else after it is loaded from its config.json, "
            'so it is not shared: a part of it was replaced after timm.create_model')


def listed(folder: str | Path, url: str | None = None) -> Shared:
    """What is in a folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob('*')) if path.is_file()}
    texts = {name: path.read_text(encoding='utf-8') for name, path in paths.items()
             if path.suffix in ('.md', '.json', '.csv', '.yaml')}
    return Shared({name: path.stat().st_size for name, path in paths.items()}, texts, url)


def upload(
        folder: str | Path, repo_id: str, revision: str | None = None, private: bool = False,
        message: str = 'Add model', token: str | None = None,
) -> Shared:
    """Send a folder to a repository of the Hub, which is made if it isn't there, in one commit.

    After a broken upload call it again: large files that have arrived are not sent again. Of a card that is already
    there, the part that this function wrote is replaced, its metadata gain the keys that they lack and the license if
    one is given; a card without such a part stays as it is.

    Args:
        folder: what to send.
        repo_id: ``'user/repo'``.
        revision: a branch, made from ``main`` if it isn't there; ``main`` if None.
        private: make the repository private.
        message: of the commit.
        token: to write with; the one that is logged in (``hf auth login``, ``HF_TOKEN``) if None.

    Raises:
        ValueError: a private repository was asked for, and a public one exists.
        HfHubHTTPError: what the Hub refuses, and why.
    """
    from .. import __version__

    api = HfApi(token=token, library_name='timm_se_plugin', library_version=__version__)
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f'{repo_id} exists and is public; private=True does not change that, its settings do')
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = Path(folder, 'README.md')
    if card.is_file():
        card.write_text(merged_card(_existing_card(api, repo_id, revision), card.read_text(encoding='utf-8')),
                        encoding='utf-8')
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message=message)
    return listed(folder, str(commit.commit_url))


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        return Path(api.hf_hub_download(repo_id, 'README.md', revision=revision)).read_text(encoding='utf-8')
    except EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # not missing: the Hub didn't answer
            raise
        return None


def merged_card(theirs: str | None, ours: str) -> str:
    """A card of ours in the place of the one before it, with what others wrote around that."""
    metadata, _, body = ours.removeprefix('---\n').partition('\n---\n')
    part = f'{_BEGIN}\n{body.strip()}\n{_END}'
    if theirs is None:
        return f'---\n{metadata}\n---\n\n{part}\n'
    if _BEGIN not in theirs or _END not in theirs:
        return theirs
    text = re.sub(f'{re.escape(_BEGIN)}.*{re.escape(_END)}', lambda _: part, theirs, count=1, flags=re.DOTALL)
    head, found, rest = text.removeprefix('---\n').partition('\n---\n')
    if not (text.startswith('---\n') and found):
        return text
    before, new = yaml.safe_load(head) or {}, yaml.safe_load(metadata) or {}
    merged = {**new, **before, **{key: new[key] for key in ('license',) if key in new}}
    if merged != before:
        head = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).strip()
    return f'---\n{head}\n---\n{rest}'

"""A folder as a commit on the Hugging Face Hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from ..files.version import __version__

__all__ = ['Shared', 'listed', 'merged_card', 'upload']

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

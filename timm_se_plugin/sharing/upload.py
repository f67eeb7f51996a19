"""Upload of a folder to the Hugging Face Hub in one commit."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from ..files.version import __version__

__all__ = ['Shared', 'listed', 'merged_card', 'upload']

_logger = logging.getLogger(__name__)

# The package owns the part of a card between these lines; the rest belongs to the card's owner.
_BEGIN, _END = '<!-- written by timm_se_plugin: begin -->', '<!-- written by timm_se_plugin: end -->'


@dataclass(frozen=True)
class Shared:
    """The files that were written, and the address of the commit.

    Args:
        files: size in bytes of each file.
        texts: content of each text file.
        url: address of the commit; None if nothing was sent.
    """

    files: Mapping[str, int]
    texts: Mapping[str, str]
    url: str | None = None


def listed(folder: str | Path, url: str | None = None) -> Shared:
    """The files in a folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob('*')) if path.is_file()}
    texts = {name: path.read_text(encoding='utf-8') for name, path in paths.items()
             if path.suffix in ('.md', '.json', '.csv', '.yaml', '.py')}
    return Shared({name: path.stat().st_size for name, path in paths.items()}, texts, url)


def upload(
        folder: str | Path, repo_id: str, revision: str | None = None, private: bool = False,
        message: str = 'Add model', token: str | None = None,
) -> Shared:
    """Send a folder to a repository of the Hub in one commit. The repository is created if it does not exist.

    After an interrupted upload, call the function again: large files that have arrived are not sent again.

    In a card (``README.md``) that the repository has already, the part that this package wrote is replaced. The card's
    metadata keep their values, except for a new license, and get the keys that are missing. A card of metadata alone,
    as the Hub's website writes for a new repository, gets the text. A card that has another text and no part of this
    package stays unchanged, and the log says so.

    Args:
        folder: the folder to send.
        repo_id: ``'user/repo'``.
        revision: a branch, which is created from ``main`` if it does not exist; ``main`` if None.
        private: whether a new repository is private.
        message: message of the commit.
        token: token with write access; if None, that of the logged-in user (``hf auth login``, ``HF_TOKEN``).

    Raises:
        ValueError: `private` is True, and the repository exists and is public.
        HfHubHTTPError: the Hub refuses; the message says why.
        ConnectionError: the Hub cannot be reached, or the transfer of a large file breaks off.
    """
    try:
        return _sent(folder, repo_id, revision, private, message, token)
    except RuntimeError as error:  # as huggingface-hub says that a large file has not been sent
        said = ' '.join(f'{error} {error.__cause__ or ""}'.split()).rstrip('.')  # on one line
        raise ConnectionError(f'{repo_id} is not shared: {said}; try again later: files that have arrived are not sent '
                              'twice') from error
    except Exception as error:
        # By name: the class is that of requests, httpx or httpx2, by the version of huggingface-hub.
        if not {'ConnectionError', 'TransportError'} & {kind.__name__ for kind in type(error).__mro__}:
            raise
        raise ConnectionError(f'{repo_id} is not shared, since the Hub cannot be reached: {error}; try again '
                              'later: files that have arrived are not sent twice') from error


def _sent(
        folder: str | Path, repo_id: str, revision: str | None, private: bool, message: str, token: str | None,
) -> Shared:
    api = HfApi(token=token, library_name='timm_se_plugin', library_version=__version__)
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f'{repo_id} exists and is public; make it private in its settings on the Hub first, since '
                         'private=True applies only to new repositories')
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = Path(folder, 'README.md')
    if card.is_file():
        text = merged_card(_existing_card(api, repo_id, revision), card.read_text(encoding='utf-8'))
        card.write_text(text, encoding='utf-8')
        if _BEGIN not in text:
            _logger.warning('the README.md of %s is not of this package and stays as it is; put the two lines %s and '
                            '%s where the text about the model is to be, and push again', repo_id, _BEGIN, _END)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message=message)
    return listed(folder, str(commit.commit_url))


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        return Path(api.hf_hub_download(repo_id, 'README.md', revision=revision)).read_text(encoding='utf-8')
    except EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # LocalEntryNotFoundError: the Hub did not answer
            raise
        return None


def merged_card(present: str | None, new: str) -> str:
    """The new card, with everything that the owner has written into the present one.

    Args:
        present: the card that the repository has; None if it has none.
        new: the card of this package.
    """
    metadata, _, body = new.removeprefix('---\n').partition('\n---\n')
    part = f'{_BEGIN}\n{body.strip()}\n{_END}'
    if present is None or not present.strip():
        return f'---\n{metadata}\n---\n\n{part}\n'
    if _BEGIN not in present or _END not in present:
        if not re.fullmatch(r'---\n((?!---\n).*\n)+---', present.strip()):
            return present
        present = f'{present.strip()}\n\n{_BEGIN}{_END}\n'  # nothing but metadata
    text = re.sub(f'{re.escape(_BEGIN)}.*{re.escape(_END)}', lambda _: part, present, count=1, flags=re.DOTALL)
    head, found, rest = text.removeprefix('---\n').partition('\n---\n')
    if not (text.startswith('---\n') and found):
        return text
    before, after = yaml.safe_load(head) or {}, yaml.safe_load(metadata) or {}
    merged = {**after, **before, **{key: after[key] for key in ('license',) if key in after}}
    if merged != before:
        head = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).strip()
    return f'---\n{head}\n---\n{rest}'

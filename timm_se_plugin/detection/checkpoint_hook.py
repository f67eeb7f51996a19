"""Checkpoints that a killed run cannot spoil."""

import re
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..files.writing import is_whole, write_atomically
from ..weights.mm_config import type_name
from .configs import named_checkpoint

__all__ = ['AtomicBackend', 'WholeCheckpointHook', 'check_work_dir', 'has_begun']


class AtomicBackend(LocalBackend):
    """Local files that appear under their name only when all of their bytes are on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write all of ``obj``, or leave the file unchanged."""
        write_atomically(Path(filepath), obj)


register_backend('atomic', AtomicBackend, force=True)


def check_work_dir(config: Any, resume: bool | str) -> None:
    """Refuse to train in the folder of another training, whose checkpoints would be overwritten.

    Args:
        config: the configuration, which names the folder, and may ask to resume as `resume` does.
        resume: whether the training of the folder is resumed, or the path of the checkpoint that is.

    Raises:
        FileExistsError: the folder has a checkpoint, and the training is not resumed, or from a checkpoint elsewhere.
    """
    work_dir = config.work_dir
    if not Path(work_dir, 'last_checkpoint').is_file():
        return
    resume = resume or (config.get('resume') and (config.get('load_from') or True))
    if not resume:
        raise FileExistsError(f'{work_dir} has the checkpoints of a training, which a new one would overwrite; '
                              '--resume continues that training, and --work-dir names another folder for a new one')
    own = {Path(work_dir).resolve(), Path(named_checkpoint(work_dir)).resolve().parent}
    if resume is not True and resume != 'auto' and not {
            Path(resume).resolve().parent, Path(resume).parent.resolve()} & own:
        raise FileExistsError(f'{work_dir} has the checkpoints of a training, which one that continues from {resume} '
                              'would overwrite; --resume without a path continues the training of the folder, and '
                              '--work-dir names another folder')


def has_begun(config: Any) -> bool:
    """Whether the training of a configuration has left a checkpoint to resume from."""
    named = named_checkpoint(config.work_dir)
    if '://' in named or Path(named or 'none').is_dir():  # remote storage; DeepSpeed's checkpoints are folders
        return True
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    found = [Path(named)] if named else []
    if type_name(hook) == WholeCheckpointHook.__name__:  # finds checkpoints that the file does not name
        names = [hook['filename_tmpl'].format('*')] if hook.get('filename_tmpl') else ['epoch_*.pth', 'iter_*.pth']
        work_dir = Path(config.work_dir)
        folders = [work_dir, *([Path(hook['out_dir'], work_dir.name)] if hook.get('out_dir') else [])]
        found += [path for folder in folders for name in names for path in folder.glob(name)]
    return any(path.is_file() and is_whole(path) for path in found)


def _step(path: Path) -> int:
    return int((re.findall(r'\d+', path.stem) or ['0'])[-1])


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with checkpoints from which a run can resume whenever it was killed.

    Checkpoints are written atomically. The oldest of ``max_keep_ckpts`` checkpoints is removed when the new one is
    complete; MMEngine removes the oldest first, so that with ``max_keep_ckpts=1`` there is no checkpoint for a moment.
    When a run begins, the file ``last_checkpoint``, which ``resume=True`` reads, is made to name the newest complete
    checkpoint.

    The arguments are those of ``CheckpointHook``. In a configuration:
    ``default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))``. If a remote ``out_dir``,
    ``backend_args`` or ``file_client_args`` is given, the backend that it names writes the checkpoints, as in
    ``CheckpointHook``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend_args: dict | None
        self.keep_ckpt_ids: deque = deque()  # CheckpointHook has this attribute only with max_keep_ckpts
        self._local = '://' not in str(self.out_dir or '') and not (self.backend_args or self.file_client_args)
        if self._local:
            self.backend_args = dict(backend='atomic')

    def before_run(self, runner: Runner) -> None:
        """Make ``last_checkpoint`` name the newest complete checkpoint, before MMEngine reads the file."""
        if self._local and is_main_process():
            self._repair(runner)
        barrier()

    def _repair(self, runner: Runner) -> None:
        pointer, named = Path(runner.work_dir, 'last_checkpoint'), named_checkpoint(runner.work_dir)
        folder = Path(self.out_dir, Path(runner.work_dir).name) if self.out_dir else Path(runner.work_dir)
        found = {path.resolve(): path for path in (Path(named), *folder.glob(self.filename_tmpl.format('*')))
                 if path.is_file()}
        last = found.get(Path(named).resolve())
        if last is not None and is_whole(last):
            # Only a checkpoint that is newer in time and in steps may replace the named one: copying changes the times.
            found = {key: path for key, path in found.items() if path == last or (
                _step(path) > _step(last) and path.stat().st_mtime > last.stat().st_mtime)}
        for path in sorted(found.values(), key=lambda path: (path != last, path.stat().st_mtime), reverse=True):
            if is_whole(path):
                if str(path) != named:
                    runner.logger.warning(f'last_checkpoint named {named!r}; the newest complete checkpoint is {path}')
                    AtomicBackend().put(str(path).encode(), pointer)
                return
            runner.logger.warning(f'{path} is not complete and is skipped')
        if named and not Path(named).is_dir():  # DeepSpeed's checkpoints are folders
            runner.logger.warning(f'last_checkpoint named {named!r}, and no complete checkpoint was found')
            pointer.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        drop = None
        if 0 < len(self.keep_ckpt_ids) == self.max_keep_ckpts and self.keep_ckpt_ids[-1] != step:
            drop = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if drop is not None and is_main_process():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(drop))
            if self.file_backend.isdir(path):
                self.file_backend.rmtree(path)
            elif self.file_backend.isfile(path):  # the user may have moved it
                self.file_backend.remove(path)

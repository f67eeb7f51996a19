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

__all__ = ['AtomicBackend', 'WholeCheckpointHook']


class AtomicBackend(LocalBackend):
    """Local files that appear under their name only when all their bytes are on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` whole or not at all."""
        write_atomically(Path(filepath), obj)


register_backend('atomic', AtomicBackend, force=True)


def _step(path: Path) -> int:
    return int((re.findall(r'\d+', path.stem) or ['0'])[-1])


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe against a kill at any moment.

    Checkpoints are written atomically, the one that ``max_keep_ckpts`` drops is removed after the new one is there
    (MMEngine removes it before, and with 1 there would be none), and a run starts by making ``last_checkpoint``, which
    ``resume=True`` reads, name the newest whole checkpoint. Takes the arguments of ``CheckpointHook``; in a config,
    ``default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))``. For a remote ``out_dir``, or with
    ``backend_args`` or ``file_client_args``, writing is left to their backend.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend_args: dict | None
        self.keep_ckpt_ids: deque = deque()  # the base has one only where max_keep_ckpts is given
        self._local = '://' not in str(self.out_dir or '') and not (self.backend_args or self.file_client_args)
        if self._local:
            self.backend_args = dict(backend='atomic')

    def before_run(self, runner: Runner) -> None:
        """Point ``last_checkpoint`` at the newest whole checkpoint, before MMEngine resumes from it."""
        if self._local and is_main_process():
            self._repair(runner)
        barrier()

    def _repair(self, runner: Runner) -> None:
        pointer = Path(runner.work_dir, 'last_checkpoint')
        named = pointer.read_text().strip() if pointer.exists() else ''
        folder = Path(self.out_dir, Path(runner.work_dir).name) if self.out_dir else Path(runner.work_dir)
        found = {path.resolve(): path for path in (Path(named), *folder.glob(self.filename_tmpl.format('*')))
                 if path.is_file()}
        last = found.get(Path(named).resolve())
        if last is not None and is_whole(last):  # a copy's times say little: one saved after it is of a later step too
            found = {key: path for key, path in found.items() if path == last or (
                _step(path) > _step(last) and path.stat().st_mtime > last.stat().st_mtime)}
        for path in sorted(found.values(), key=lambda path: (path != last, path.stat().st_mtime), reverse=True):
            if is_whole(path):
                if str(path) != named:
                    runner.logger.warning(f'last_checkpoint named {named!r}; the newest whole checkpoint is {path}')
                    AtomicBackend().put(str(path).encode(), pointer)
                return
            runner.logger.warning(f'{path} is not a whole checkpoint and is passed over')
        if named and not Path(named).is_dir():  # DeepSpeed's checkpoints are folders
            runner.logger.warning(f'last_checkpoint named {named!r}, and no whole checkpoint was found')
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
            elif self.file_backend.isfile(path):  # its owner may have moved it
                self.file_backend.remove(path)

"""A training run: its parts, which timm builds from the options, and its state."""

import logging
import math
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import safe_model_name
from timm.scheduler import create_scheduler
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.utils import NativeScaler, dispatch_clip_grad, random_seed
from torch import Tensor, nn

from ..files.hub_files import SAVED_AT
from ..models.names import create_network, description, keywords_of
from ..weights.runs import channel_kwargs, data_config
from .augmentation import BatchAugmentation
from .checkpoint import BEST, LAST, newest_whole, save_checkpoint
from .continuing import check_data, checkpoint_of, continued
from .freezing import fix_statistics, freeze
from .images import seed_of
from .loaders import eval_loader, train_loader
from .loss import make_loss
from .network import check_image_size, moved
from .optimizer import make_optimizer
from .process import Process
from .splits import check_splits, class_names, label_by_name, number_of_classes, open_split

__all__ = ['NonFiniteLossError', 'Run']

_logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """A loss, a weight or a statistic of the network is NaN or infinite."""


class Run:
    """The parts of a training run, and how far the run has come.

    The randomness of a step is seeded by the seed, the rank, the epoch and the batch; the randomness of an image by the
    seed and its position in the epoch (:class:`~timm_se_plugin.training.images.Images`). A checkpoint therefore needs
    no states of random generators, and a resumed run computes what an uninterrupted run computes. Another number of
    processes continues the run with the same images in each update.

    Args:
        options: result of :func:`~timm_se_plugin.training.config.parse_options`.
        process: this process.

    Raises:
        ValueError: options that do not fit each other or the data, a folder that holds another run, or processes that
            find different checkpoints in the folder.
    """

    def __init__(self, options: Namespace, process: Process) -> None:
        train_data = open_split(options, options.train_split, training=True)
        self.classes, self.label_names = number_of_classes(options, train_data), class_names(train_data)
        val_data = open_split(options, options.val_split, training=False)
        label_by_name(val_data, self.label_names, options.val_split)
        check_splits(options, train_data, val_data)
        options = Namespace(**{
            **vars(options), 'num_classes': self.classes, 'model_kwargs': channel_kwargs(vars(options))})
        self.process, self.folder = process, _folder(options)
        self.images = len(train_data)
        path, state = checkpoint_of(options, self.folder)
        batch = {key: getattr(options, key) for key in ('batch_size', 'grad_accum_steps')}
        if state is not None:
            options = continued(options, state, process, path)
            check_data(state, self.label_names, self.images, options.data_dir, path)
        self.options = options
        # Checkpoints keep the batch size that the command gives, which another number of processes may have changed.
        self.given = Namespace(**{**vars(options), **batch})
        random_seed(options.seed)
        kept = (state or {}).get('model_config')
        model = self.create_model(options.model, options.model_kwargs, options.pretrained, kept)
        # The saved model that the run begins with may be moved or replaced before the run is read.
        self.model_config = kept or (description(model) if options.model.startswith(SAVED_AT) else None)
        if options.sync_bn:
            if process.device.type != 'cuda':
                raise ValueError('--sync-bn needs CUDA: torch.nn.SyncBatchNorm does not run on the CPU')
            model = convert_sync_batchnorm(model)
        if options.freeze:
            if not options.pretrained:
                _logger.warning('--freeze %s without --pretrained freezes random weights', options.freeze)
            freeze(model, options.freeze)
        config = data_config(vars(options), model)
        self.input_size: tuple[int, int, int] = tuple(config['input_size'])
        check_image_size(model, self.input_size, options.train_img_size)
        self.train_loader = train_loader(options, train_data, config, process)
        self.eval_loader = eval_loader(options, val_data, config, process)
        self.updates = len(self.train_loader) // options.grad_accum_steps

        self.augment = BatchAugmentation(options, self.classes, process.device)
        known = self.label_names or []
        names = [*known, *map(str, range(len(known), self.classes))]
        loss = make_loss(options, train_data, names, self.augment.mix is not None)
        self.is_multilabel = options.task == 'multilabel'
        self.task = (MultiLabelClassificationTask if self.is_multilabel else ClassificationTask)(
            model, loss.to(getattr(torch, options.model_dtype)), device=process.device, verbose=False)
        self.optimizer = make_optimizer(model, options, self.learning_rate)
        if options.sched == 'plateau' and options.sched_on_updates:
            raise ValueError('--sched plateau changes the learning rate after an evaluation; leave out '
                             '--sched-on-updates')
        self.scheduler, self.epochs = create_scheduler(options, self.optimizer, self.updates)
        self.train_loader.transforms.switch = self.epochs - options.full_size_epochs  # with the epochs of a cooldown
        scales = options.amp and options.amp_dtype == 'float16'
        self.scaler = NativeScaler(process.device.type) if scales else None
        if options.model_ema:
            self.task.setup_ema(decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)

        self.epoch = 0
        self.batch = 0  # number of the next batch of the epoch
        self.sums = torch.zeros(3, dtype=process.sum_dtype, device=process.device)  # loss, right, images of the epoch
        self.seconds = 0.0
        self.best = float('-inf')
        self.history: list[dict[str, Any]] = []
        self.writer: Any = None  # TensorBoard's, with --tensorboard
        self._losses: list[Tensor] = []  # not checked yet, since reading them makes the process wait for the GPU
        if state is not None:
            self._resume(state)
            if self.epoch < self.epochs:
                _logger.info('resumed from %s in epoch %d, after batch %d', path, self.epoch + 1, self.batch)
            else:
                _logger.warning('%s has had all of its %d epochs, and nothing is left to train; --epochs continues it, '
                                'and --experiment names the folder of another run', self.folder, self.epochs)
        position = torch.tensor([self.epoch, self.batch], device=process.device)
        if not torch.equal(process.total(position.clone()), position * process.world_size):
            raise ValueError(f'the processes find different checkpoints in {self.folder}: this one is in epoch '
                             f'{self.epoch + 1}, after batch {self.batch}; --output has to be a folder that all share')
        if options.torchcompile:
            self.task.compile(backend=options.torchcompile)
        if process.distributed:
            self.task.prepare_distributed(
                device_ids=[process.device] if process.device.type == 'cuda' else None)

    @property
    def model(self) -> nn.Module:
        """The network, without wrappers."""
        return timm.utils.unwrap_model(self.task.get_trainable_module())

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: with averaged weights if the run averages them."""
        return timm.utils.unwrap_model(self.task.get_trainable_module(ema=self.task.has_ema()))

    @property
    def global_batch(self) -> int:
        """Number of images in one update, over all processes."""
        return self.options.batch_size * self.options.grad_accum_steps * self.process.world_size

    @property
    def learning_rate(self) -> float:
        """Learning rate: ``--lr``, or ``--lr-base`` scaled to the global batch by timm's rule."""
        scale = self.options.lr_base_scale or (
            'sqrt' if any(kind in self.options.opt.lower() for kind in ('ada', 'lamb')) else 'linear')
        ratio = self.global_batch / self.options.lr_base_size
        return self.options.lr or self.options.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)

    @property
    def lr(self) -> float:
        """Current learning rate of the last layer outside the attention."""
        group = self.optimizer.param_groups[0]
        return group['lr'] / group.get('lr_scale', 1.0)

    def train(self) -> None:
        """Put the network into training mode, except frozen BatchNorm layers."""
        self.task.train()
        fix_statistics(self.model)

    def autocast(self) -> AbstractContextManager:
        """Context of a forward pass: autocast, or nothing."""
        return self.process.autocast(self.options)

    def seeds_of_images(self, batch: int) -> list[int]:
        """A seed for each image of a batch, by its position in the epoch."""
        size, rank, count = self.options.batch_size, self.process.rank, self.process.world_size
        return [seed_of(self.options.seed, self.epoch, rank + count * i, 2)
                for i in range(batch * size, (batch + 1) * size)]

    def seed_step(self, batch: int) -> None:
        """Seed the randomness of a batch: mixing, dropout."""
        random_seed(seed_of(self.options.seed, self.epoch, batch, 1) // 2, self.process.rank)

    def learn(self, loss: Tensor, update: bool) -> None:
        """Compute gradients; with `update`, clip them and take a step of the optimizer."""
        clip, mode = self.options.clip_grad, self.options.clip_mode
        parameters = self.task.get_clip_parameters(exclude_head=mode == 'agc')
        if self.scaler:
            self.scaler(
                loss, self.optimizer, clip_grad=clip, clip_mode=mode, parameters=parameters, need_update=update)
            return
        loss.backward()
        if update:
            if clip is not None:
                dispatch_clip_grad(parameters, clip, mode=mode)
            self.optimizer.step()

    def updated(self) -> None:
        """After a step of the optimizer, clear the gradients, average the weights and change the learning rate."""
        self.optimizer.zero_grad()
        number = self.epoch * self.updates + self.batch // self.options.grad_accum_steps
        self.task.update_ema(step=number)
        if self.scheduler:
            self.scheduler.step_update(number)

    def count(self, result: dict[str, Tensor], y: Tensor) -> None:
        """Add a batch to the sums of the epoch."""
        loss = result['loss'].detach()
        self._losses.append(loss)
        # With several labels, no guess is right or wrong as a whole: only the loss is counted.
        right = self.sums.new_zeros(()) if self.is_multilabel else (result['output'].detach().argmax(1) == y).sum()
        self.sums += torch.stack([loss.to(self.sums) * len(y), right.to(self.sums), self.sums.new_full((), len(y))])

    def check(self) -> None:
        """Check the losses since the last check.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; the message names the step and the images.
        """
        losses = torch.stack(self._losses).float() if self._losses else torch.zeros(0, device=self.process.device)
        first = self.batch - len(self._losses)
        self._losses.clear()
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if not self.process.any(bool(bad)):
            return
        if not bad:
            raise NonFiniteLossError(f'the loss of another process is NaN or infinite; {self._kept()}')
        batch = first + bad[0]
        step = self.epoch * self.updates + batch // self.options.grad_accum_steps
        raise NonFiniteLossError(
            f'the loss is {losses[bad[0]].item()} in epoch {self.epoch + 1}, batch {batch + 1} (step {step + 1}), with '
            f'the images {self.train_loader.names(batch)}; {self._kept()}')

    def check_state(self) -> None:
        """Check the weights and statistics, which the last update may have made infinite although its loss was finite.

        Raises:
            NonFiniteLossError: a weight or a statistic is NaN or infinite; the message has its name.
        """
        for model in dict.fromkeys((self.model, self.evaluated)):
            bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
            if self.process.any(bool(bad)):
                raise NonFiniteLossError(
                    f'{bad[0] if bad else "a weight of another process"} is NaN or infinite after epoch '
                    f'{self.epoch + 1}, batch {self.batch}; {self._kept()}')

    def check_validation(self, loss: float) -> None:
        """Check a loss of the evaluation, which huge but finite weights can make NaN.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if not math.isfinite(loss):
            best = self.folder / BEST
            kept = f'{best} is of an earlier epoch' if best.exists() else 'there is no checkpoint of an earlier epoch'
            raise NonFiniteLossError(f'the validation loss is {loss} after epoch {self.epoch + 1}, with the weights in '
                                     f'{self.folder / LAST}; {kept}')

    def _kept(self) -> str:
        kept = newest_whole(self.folder)
        return f'the last checkpoint, {kept}, is intact' if kept else 'there is no checkpoint yet'

    def save(self, best: bool = False) -> None:
        """Write a checkpoint. Every process has to call this method; the primary process writes."""
        self.check()
        self.check_state()
        sums = self.process.total(self.sums.clone()) / self.process.world_size
        if not self.process.primary:
            return
        state = {
            **self.task.get_checkpoint_state(), **self.task.get_checkpoint_state(ema=True),
            'arch': self.options.model, 'args': self.given, 'version': 2, 'epoch': self.epoch - 1,
            'optimizer': self.optimizer.state_dict(),
            'scheduler': _with_state(self.scheduler).state_dict() if self.scheduler else {},
            'position': {
                'epoch': self.epoch, 'batch': self.batch, 'grad_accum_steps': self.options.grad_accum_steps,
                'world_size': self.process.world_size, 'global_batch': self.global_batch},
            'label_names': self.label_names, 'model_config': self.model_config, 'images': self.images,
            'sums': sums.tolist(), 'seconds': self.seconds, 'best': self.best, 'history': self.history,
        }
        if self.scaler:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        save_checkpoint(self.folder, state, best)

    def _resume(self, state: dict[str, Any]) -> None:
        position, steps = state['position'], self.options.grad_accum_steps
        self.task.load_checkpoint_state(state['state_dict'])
        if self.task.has_ema():
            self.task.load_checkpoint_state(state['state_dict_ema'], ema=True)
        self.optimizer.load_state_dict(state['optimizer'])
        if self.scaler:
            self.scaler.load_state_dict(state[self.scaler.state_dict_key])
        updates = position['batch'] // position.get('grad_accum_steps', state['args'].grad_accum_steps)
        self.epoch, self.batch = position['epoch'], updates * steps
        if self.scheduler:
            is_timms = _with_state(self.scheduler) is self.scheduler
            if is_timms and state['args'].epochs != self.options.epochs:  # timm's state would restore the old length
                self.scheduler.step(self.epoch)
                self.scheduler.step_update(self.epoch * self.updates + updates)
            else:
                _with_state(self.scheduler).load_state_dict(state['scheduler'])
        self.sums += self.sums.new_tensor(state['sums']) * (position['world_size'] / self.process.world_size)
        self.seconds, self.history = state['seconds'], state['history']
        if (self.folder / BEST).exists():  # otherwise the best of the epochs to come is written
            self.best = state['best']

    def create_model(
            self, name: str, model_kwargs: dict[str, Any], pretrained: bool, kept: dict[str, Any] | None = None,
    ) -> nn.Module:
        """A network on the device, as the options describe it, with BatchNorm that is not synchronised yet."""
        options = self.options
        with keywords_of(name, {**model_kwargs, 'drop_path_rate': options.drop_path}):
            model: Any = create_network(
                name, kept, pretrained, num_classes=self.classes,
                drop_path_rate=options.drop_path, **model_kwargs)  # timm drops keywords that are None
        if options.grad_checkpointing:
            try:
                model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:  # as timm's VGG raises
                raise ValueError(f'--grad-checkpointing is not possible with {name}, whose network does not offer '
                                 'it') from error
        return moved(model, options, self.process)


def _with_state(scheduler: Any) -> Any:
    """The scheduler whose ``state_dict`` is complete: for timm's plateau schedule, torch's scheduler inside."""
    return getattr(scheduler, 'lr_scheduler', scheduler)


def _folder(options: Namespace) -> Path:
    recipe = Path(options.config).stem if options.config else 'train'
    model = safe_model_name(options.model, remove_source=False)  # hf-hub:user/repo becomes one folder
    return Path(options.output, options.experiment or f'{recipe}/{model}-seed{options.seed}')

"""A trained ResNet-18 gains SE without losing a prediction, and both are trained on: accuracy, cost, gates.

The images are scikit-learn's 1,797 handwritten digits. Everything is written to one folder.
"""

import copy
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..measuring.complexity import complexity, saved_bytes
from ..placement import add_attention
from ..weights.folders import write_model
from .report import write_report
from .seeds import paired_difference
from .statistics import gate_statistics

__all__ = ['demo']

MEAN, STD = 0.305, 0.376  # of the training digits
PLAIN, ATTENDED = 'ResNet-18', 'SE-ResNet-18'


def digits(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images, train labels, test images, test labels; images (N, 1, size, size), normalised."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    y = torch.from_numpy(labels)
    x = (x - MEAN) / STD
    return x[train], y[train], x[test], y[test]


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and seconds of one step."""
    start = time.perf_counter()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach()), time.perf_counter() - start


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities, (N, classes)."""
    return torch.cat([model.eval()(batch).softmax(1) for batch in x.split(120)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right predictions in per cent."""
    return 100 * float((predictions(model, x).argmax(1) == y).float().mean())


def train(
        models: Mapping[str, nn.Module], x: Tensor, y: Tensor, epochs: int, batch: int, lr: float, title: str,
) -> dict[str, list[float]]:
    """Train the models side by side, each on the same batches; returns the seconds of every step."""
    optimizers = {
        name: create_optimizer_v2(model, opt='adamw', lr=lr, weight_decay=0.05) for name, model in models.items()}
    schedulers = {
        name: create_scheduler_v2(optimizer, sched='cosine', num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4)[0]
        for name, optimizer in optimizers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for epoch in range(epochs):
        for name, model in models.items():
            model.train()
            schedulers[name].step(epoch)
        batches = torch.randperm(len(x)).split(batch)[:len(x) // batch]
        with tqdm(batches, desc=f'{title}, epoch {epoch + 1}/{epochs}', unit='batch', mininterval=2,
                  disable=not sys.stderr.isatty()) as progress:
            for step, index in enumerate(progress):
                losses = {}
                # Each model goes first in turn, so that neither always finds caches that the other has warmed.
                for name in sorted(models, reverse=bool(step % 2)):
                    losses[name], elapsed = training_step(models[name], optimizers[name], x[index], y[index])
                    seconds[name].append(elapsed)
                progress.set_postfix({name: f'{loss:.3f}' for name, loss in losses.items()})
    return seconds


def picture(path: Path, x: Tensor, y: Tensor, probabilities: Tensor) -> None:
    """Draw 24 test images with the model's predictions; mistakes come first, in red."""
    from matplotlib.figure import Figure

    confidence, predicted = probabilities.max(1)
    chosen = torch.argsort((predicted == y).int(), stable=True)[:24]
    figure = Figure(figsize=(10.4, 5.2), layout='constrained')
    for axis, i in zip(figure.subplots(3, 8).flat, chosen.tolist(), strict=True):
        right = predicted[i] == y[i]
        axis.imshow(x[i, 0].numpy(), cmap='gray_r')
        text = f'{int(predicted[i])}  {float(confidence[i]):.0%}' + ('' if right else f'\nis {int(y[i])}')
        axis.set_title(text, fontsize=10, color='black' if right else 'tab:red')
        axis.axis('off')
    mistakes = int((predicted != y).sum())
    figure.suptitle(f'{ATTENDED} on {len(y)} test digits: {mistakes} mistakes (shown first)')
    figure.savefig(path, dpi=110)


def _spread(values: Mapping[str, float]) -> str:
    own = list(values.values())
    return f'{statistics.mean(own):.2f}' + (f' ± {statistics.stdev(own):.2f}' if len(own) > 1 else '')


def _cost(models: Mapping[str, nn.Module], seconds: Mapping[str, list[float]], batch: Tensor) -> str:
    """Parameters and multiply-accumulates, and time and memory of a training step as ratios to the plain network."""
    memory = {name: saved_bytes(model.train(), batch) for name, model in models.items()}
    lines = [f'{"":<16}{"parameters":>14}{"MACs":>14}{"step time":>12}{"step memory":>13}']
    for name, model in models.items():
        cost = complexity(model, (batch.shape[1], batch.shape[2], batch.shape[3]))
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[PLAIN], strict=True))
        lines.append(f'{name:<16}{cost.params:>14,}{cost.macs:>14,}{ratio:>12.3f}{memory[name] / memory[PLAIN]:>13.3f}')
    return '\n'.join(lines)


def demo(output: Path, epochs: int = 3, batch_size: int = 64, size: int = 32, seeds: int = 3) -> None:
    """Run the demo, and print what it finds.

    Args:
        output: folder for all files.
        epochs: number of epochs before attention is added, and of those after.
        batch_size: images in a batch.
        size: height and width in pixels to which the images are resized.
        seeds: number of seeds; everything is done with the seeds 0, 1, and so on.

    Raises:
        ValueError: no epoch, pixel or seed, or a batch of fewer than two images or of more than there are.
    """
    for name, value, least in (('epochs', epochs, 1), ('batch_size', batch_size, 2), ('size', size, 1),
                               ('seeds', seeds, 1)):
        if value < least:
            raise ValueError(f'{name}={value} is too few for the demo; give {least} or more')
    x, y, test_x, test_y = digits(size)
    if batch_size > len(x):
        raise ValueError(f'batch_size={batch_size} is more than the {len(x)} images; give {len(x)} or fewer')
    classes = [str(i) for i in range(10)]
    print(f'{len(x)} handwritten digits to train on and {len(test_x)} to test on, {size}x{size} pixels; {seeds} seeds')
    found: dict[str, dict[str, float]] = {'before': {}, PLAIN: {}, ATTENDED: {}}
    seconds: dict[str, list[float]] = {PLAIN: [], ATTENDED: []}
    kept: dict[str, nn.Module] = {}
    for seed in map(str, range(seeds)):
        torch.manual_seed(int(seed))
        plain = timm.create_model('resnet18_plugin', num_classes=10, in_chans=1)
        train({PLAIN: plain}, x, y, epochs, batch_size, 2e-3, f'seed {seed}')
        attended = copy.deepcopy(plain)
        add_attention(attended, 'se', init='identity', input_size=(1, size, size))
        before, gained = predictions(plain, test_x), predictions(attended, test_x)
        found['before'][seed] = accuracy(plain, test_x, test_y)
        print(f'\nseed {seed}: {PLAIN} trained for {epochs} epochs, {found["before"][seed]:.2f} % right. It gains SE: '
              f'{int((before.argmax(1) != gained.argmax(1)).sum())} of {len(test_x)} predictions change, '
              f'and no probability by more than {float((before - gained).abs().max()):.0e}')
        models = {PLAIN: plain, ATTENDED: attended}
        for name, own in train(models, x, y, epochs, batch_size, 1e-3, f'seed {seed}, with and without SE').items():
            seconds[name] += own
        for name, model in models.items():
            found[name][seed] = accuracy(model, test_x, test_y)
        print(f'seed {seed}: {epochs} epochs later {PLAIN} has {found[PLAIN][seed]:.2f} %, '
              f'{ATTENDED} {found[ATTENDED][seed]:.2f} %')
        kept = kept or models

    difference = paired_difference(found[ATTENDED], found[PLAIN])
    assert difference is not None
    interval = '' if difference.low is None else (
        f', 95 % interval {difference.low:+.2f} to {difference.high:+.2f}'
        + (': no difference that these seeds show' if difference.low <= 0 <= (difference.high or 0) else ''))
    print(f'\nmean accuracy in per cent: {_spread(found["before"])} before; after it {PLAIN} {_spread(found[PLAIN])}, '
          f'{ATTENDED} {_spread(found[ATTENDED])}\ndifference {difference.mean:+.2f} points{interval}\n')
    print(_cost(kept, seconds, x[:batch_size]))
    print(f'step time and step memory (kept for the backward pass) are ratios to {PLAIN}\n')

    model, folder = kept[ATTENDED], output / 'se_resnet18_digits'
    data = {'input_size': (1, size, size), 'mean': (MEAN,), 'std': (STD,)}
    write_model(model, folder, {'label_names': classes}, data)
    name = f'local-dir:{folder}'
    saved, loaded = (predictions(m, test_x) for m in (model, timm.create_model(name, pretrained=True)))
    print(f"saved; timm.create_model('{name}', pretrained=True) gives it back")
    print(f'largest difference of {loaded.numel()} predicted probabilities: {float((loaded - saved).abs().max())}')
    assert torch.equal(saved, loaded)

    picture(output / 'predictions.png', test_x, test_y, saved)
    print(f'predictions on test images: {output / "predictions.png"}')
    gates = gate_statistics(model, zip(test_x.split(120), test_y.split(120), strict=True), classes)
    write_report(
        output / 'report.html', model, gates, title=f'Gates of {ATTENDED}', note=f'{len(test_x)} test digits, seed 0',
        input_size=(1, size, size))
    print(f'what the gates learned, to open in a browser: {(output / "report.html").resolve().as_uri()}')

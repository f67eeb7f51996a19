"""Train SE-ResNet-18 and the plain ResNet-18 on real images, compare them, save the first and load it back.

The images are scikit-learn's 1,797 handwritten digits. Everything is written to one folder.
"""

import statistics
import sys
import time
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
from ..weights.folders import write_model

__all__ = ['demo']

MEAN, STD = 0.305, 0.376  # of the training digits


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


def train(models: dict[str, nn.Module], x: Tensor, y: Tensor, epochs: int, batch: int) -> dict[str, list[float]]:
    """Train the models side by side, each on the same batches; returns the seconds of every step."""
    optimizers = {
        name: create_optimizer_v2(model, opt='adamw', lr=2e-3, weight_decay=0.05) for name, model in models.items()}
    schedulers = {
        name: create_scheduler_v2(optimizer, sched='cosine', num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4)[0]
        for name, optimizer in optimizers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for epoch in range(epochs):
        for name, model in models.items():
            model.train()
            schedulers[name].step(epoch)
        batches = torch.randperm(len(x)).split(batch)[:len(x) // batch]
        with tqdm(batches, desc=f'epoch {epoch + 1}/{epochs}', unit='batch', mininterval=2,
                  disable=not sys.stderr.isatty()) as progress:
            for step, index in enumerate(progress):
                losses = {}
                # Taking turns at going first, so that neither always finds the other's warm cache.
                for name in sorted(models, reverse=bool(step % 2)):
                    losses[name], elapsed = training_step(models[name], optimizers[name], x[index], y[index])
                    seconds[name].append(elapsed)
                progress.set_postfix({name: f'{loss:.3f}' for name, loss in losses.items()})
    return seconds


def table(models: dict[str, nn.Module], seconds: dict[str, list[float]], x: Tensor, y: Tensor, batch: Tensor) -> str:
    """Accuracy and cost, time and memory as ratios to the first model."""
    reference = next(iter(models))
    memory = {name: saved_bytes(model.train(), batch) for name, model in models.items()}
    lines = [f'{"model":<22}{"accuracy":>10}{"parameters":>14}{"MACs":>14}{"step time":>12}{"step memory":>13}']
    for name, model in models.items():
        accuracy = float((predictions(model, x).argmax(1) == y).float().mean())
        cost = complexity(model, (x.shape[1], x.shape[2], x.shape[3]))
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))
        lines.append(
            f'{name:<22}{accuracy:>10.3f}{cost.params:>14,}{cost.macs:>14,}{ratio:>12.3f}'
            f'{memory[name] / memory[reference]:>13.3f}')
    return '\n'.join(lines)


def picture(path: Path, x: Tensor, y: Tensor, probabilities: Tensor, count: int = 24) -> None:
    """Test images with what the model says; all of its mistakes first, in red."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    confidence, predicted = probabilities.max(1)
    chosen = torch.argsort((predicted == y).int(), stable=True)[:count]
    figure, axes = plt.subplots(3, count // 3, figsize=(count // 3 * 1.3, 5.2))
    for axis, i in zip(axes.flat, chosen.tolist(), strict=True):
        right = predicted[i] == y[i]
        axis.imshow(x[i, 0].numpy(), cmap='gray_r')
        said = f'{int(predicted[i])}  {float(confidence[i]):.0%}' + ('' if right else f'\nis {int(y[i])}')
        axis.set_title(said, fontsize=10, color='black' if right else 'tab:red')
        axis.axis('off')
    mistakes = int((predicted != y).sum())
    figure.suptitle(f'SE-ResNet-18 on {len(y)} test digits: {mistakes} mistakes (shown first)')
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def demo(output: Path, epochs: int = 6, batch_size: int = 64, size: int = 64, seed: int = 0) -> None:
    """Run the demo, and print what it finds.

    Args:
        output: folder for everything written.
        epochs: number of epochs.
        batch_size: images in a batch.
        size: the images are resized to this many pixels.
        seed: seed of all random numbers.
    """
    torch.manual_seed(seed)
    x, y, test_x, test_y = digits(size)
    settings = {'num_classes': 10, 'in_chans': 1}
    models = {name: timm.create_model(name, **settings) for name in ('resnet18_plugin', 'se_resnet18_plugin')}
    print(f'Training {" and ".join(models)} on {len(x)} digits of {size}x{size} pixels, side by side')
    seconds = train(models, x, y, epochs, batch_size)
    print('\n' + table(models, seconds, test_x, test_y, x[:batch_size]))
    print('step time and step memory (kept for the backward pass) are ratios to the plain network\n')

    model = models['se_resnet18_plugin']
    folder = output / 'se_resnet18_digits'
    write_model(
        model, folder, {'label_names': [str(i) for i in range(10)]},
        {'input_size': (1, size, size), 'mean': (MEAN,), 'std': (STD,)})
    name = f'local-dir:{folder}'
    before, after = (predictions(m, test_x) for m in (model, timm.create_model(name, pretrained=True)))
    print(f"saved; timm.create_model('{name}', pretrained=True) gives it back")
    print(f'largest difference of {after.numel()} predicted probabilities: {float((after - before).abs().max())}')
    assert torch.equal(before, after)

    picture(output / 'predictions.png', test_x, test_y, before)
    print(f'predictions on test images: {output / "predictions.png"}')

"""The peer of the benchmarks: the networks and the loss of PCL as one does in PyTorch.

Written from the description of Zeng et al. 2021, arXiv 2106.09157; sizes as in
`pclseg.models.unet2d`, cosine similarities by broadcasting [N, 1, D] against [1, N, D],
augmentation by batchgenerators in the workers of a DataLoader.
"""

from collections.abc import Iterator

import numpy as np
import torch
from peer_augmentation import make_chain
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4
PREFETCH = 2  # batches that each worker makes ahead
torch.backends.cudnn.benchmark = True  # sizes stay the same: let it choose


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: 3 x 3 convolution, batch normalisation, leaky ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """The contracting path with the centre."""

    def __init__(self, width: int) -> None:
        """Builds it."""
        super().__init__()
        sizes = [1, *(width * 2**level for level in range(LEVELS))]
        self.levels = nn.ModuleList(
            block(a, b) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.centre = nn.Sequential(
            nn.Conv2d(sizes[-1], 2 * sizes[-1], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * sizes[-1], 2 * sizes[-1], 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 1, H, W] -> the centre and the skips."""
        skips = []
        for level in self.levels:
            x = level(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        return self.centre(x), skips


class Contrast(nn.Module):
    """Encoder and projection head."""

    def __init__(self, width: int, out_dim: int = 512) -> None:
        """Builds it."""
        super().__init__()
        self.encoder = Encoder(width)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16 * width, 16 * width),
            nn.ReLU(inplace=True),
            nn.Linear(16 * width, out_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, out_dim]."""
        return self.head(self.encoder(x)[0])


class UNet(nn.Module):
    """U-Net for segmentation."""

    def __init__(self, width: int, num_classes: int) -> None:
        """Builds it."""
        super().__init__()
        self.encoder = Encoder(width)
        sizes = [width * 2**level for level in range(LEVELS + 1)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(sizes[i + 1], sizes[i], 2, stride=2)
            for i in reversed(range(LEVELS))
        )
        self.levels = nn.ModuleList(
            block(2 * sizes[i], sizes[i]) for i in reversed(range(LEVELS))
        )
        self.logits = nn.Conv2d(width, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, num_classes, H, W]."""
        x, skips = self.encoder(x)
        for up, level, skip in zip(
            self.ups, self.levels, reversed(skips), strict=False
        ):
            x = level(torch.cat([up(x), skip], dim=1))
        return self.logits(x)


def contrast(views: Tensor, positions: Tensor, *, broadcast: bool) -> Tensor:
    """PCL's loss with threshold 0.35, temperature 0.1 and base temperature 0.07.

    Args:
        views: [2 B, D], first views before second ones.
        positions: [B] float64.
        broadcast: cosine similarities by broadcasting, else by one matrix product.
    """
    both = torch.cat([positions, positions])
    if broadcast:
        cosine = functional.cosine_similarity(views[:, None], views[None], dim=-1)
    else:
        unit = functional.normalize(views.float())
        cosine = unit @ unit.T
    others = ~torch.eye(len(views), dtype=torch.bool, device=views.device)
    near = ((both[:, None] - both[None]).abs() < 0.35) & others
    logits = (cosine / 0.1).masked_fill(~others, -torch.inf)
    log_prob = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    mean = log_prob.masked_fill(~near, 0.0).sum(dim=1) / near.sum(dim=1)
    return -(0.1 / 0.07) * mean.mean()


def pretraining_step(width: int, device: str, *, best: bool):
    """A step of pre-training as a function of two views [B, 1, H, W] and positions.

    Args:
        width: of the network.
        device: "cuda" or "cpu".
        best: channels_last, autocast to bfloat16 and torch.compile; else eager float32.
    """
    model, optimiser = _start(Contrast(width), device, best=best)
    network = torch.compile(model) if best else model

    def step(first: Tensor, second: Tensor, positions: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=best):
            views = torch.cat([network(first), network(second)])
        loss = contrast(views, positions, broadcast=not best)
        return _update(loss, optimiser)

    return step


def segmentation_step(width: int, num_classes: int, device: str, *, best: bool):
    """A step of fine-tuning as a function of images [B, 1, H, W] and labels."""
    model, optimiser = _start(UNet(width, num_classes), device, best=best)
    network = torch.compile(model) if best else model

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=best):
            logits = network(images)
        return _update(functional.cross_entropy(logits.float(), labels), optimiser)

    return step


def _start(model: nn.Module, device: str, *, best: bool):
    form = torch.channels_last if best else torch.contiguous_format
    model = model.to(device, memory_format=form)
    return model, torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5
    )


def _update(loss: Tensor, optimiser: torch.optim.Optimizer) -> Tensor:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


class Views(torch.utils.data.Dataset):
    """Slices at random, each twice augmented on the CPU; or once, with its label."""

    def __init__(self, size: int, *, shrink: float, labels: bool) -> None:
        """Builds it."""
        generator = np.random.default_rng(0)
        self._images = generator.normal(size=(64, 1, 1, size, size)).astype(np.float32)
        self._labels = labels
        self._augment = make_chain(size, shrink=shrink)

    def __len__(self) -> int:
        """More than is ever read."""
        return 10**6

    def __getitem__(self, item: int):
        """Two views [1, H, W] and a position, or an image and its label [H, W]."""
        image = self._images[item % len(self._images)]
        if self._labels:
            out = self._augment(data=image.copy(), seg=(image > 0).astype(np.float32))
            return out["data"][0], out["seg"][0, 0].astype(np.int64)
        views = [self._augment(data=image.copy())["data"][0] for _ in range(2)]
        return (*views, np.float64((item % 10 + 1) / 10))


def loader(dataset: Views, batch_size: int, workers: int) -> Iterator:
    """Batches of a DataLoader with that many worker processes."""
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=False,
            num_workers=workers,
            prefetch_factor=PREFETCH,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="forkserver" if workers else None,
        )
    )

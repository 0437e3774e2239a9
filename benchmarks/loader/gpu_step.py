"""On a GPU: the synthesis and nvJPEG beside a training step of ResNet-50 on the same images, and their share of it.

    python -m benchmarks.loader.gpu_step --batch 256

Each decodes the same photographs of 256×256 at equal agreement (:mod:`benchmarks.loader.photos`) from what a loader's
workers would have handed over: ours from a chunk of latents in the processor's memory; nvJPEG, by way of torchvision,
from the bytes of JPEG files. The step is forward, backward and SGD in bfloat16, channels last. All take turns in every
round; medians of wall time with the device waited for. The share is that of decoding in decoding + step, one after the
other; a loader runs them side by side. Without a CUDA device the script says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.loader.photos import AT_AGREEMENT, FINGERPRINT, SIDE, fitted, originals
from benchmarks.peers import JPEG_420, markdown_table, planes
from discernible.pipeline.loader.batching import LoadedSample, decode_chunk, pack_chunk
from discernible.pipeline.reading.worker_codec import Codecs


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut (He et al. 2016, the stride in the 3×3 as everywhere today)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        layers = []
        for source, target, side, step in ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)):
            layers += [nn.Conv2d(source, target, side, step, side // 2, bias=False), nn.BatchNorm2d(target), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * width:
            self.shortcut.extend([nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4·width, H/stride, W/stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Sequential:
    """ResNet-50: (N, 3, H, W) to (N, classes)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(depth):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def training_step(batch: int, device: torch.device) -> Callable[[], object]:
    """A step on a batch that is on the device already."""
    net = resnet50().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    images = torch.rand(batch, 3, SIDE, SIDE, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        optimiser.step()

    return step


def decoders(judge: str, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Each makes a batch of uint8 (batch, 3, 256, 256) on the device."""
    qualities = AT_AGREEMENT[judge]
    photos = [fitted(image) for image in originals(batch)]
    codecs = Codecs(weights="default", device=str(device))
    codec = codecs.made_with(None)
    if codec.fingerprint != FINGERPRINT:
        print(f"quality {qualities.ours} was found for weights {FINGERPRINT}, these are {codec.fingerprint}")
    streams = codec.encode([planes(image) for image in photos], quality=qualities.ours)
    size = SIDE, SIDE
    samples = [
        LoadedSample(shard="", key="", labels=(), size=size, latents=codec.entropy_decode_compact(stream))
        for stream in streams
    ]
    chunk = pack_chunk(samples)
    if device.type == "cuda":
        chunk = chunk.pin_memory()
    found: dict[str, Callable[[], object]] = {"discernible": lambda: torch.stack(decode_chunk(chunk, codecs))}
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as exc:
        print(f"left out: nvJPEG: {exc}")
        return found
    files = [JPEG_420.encode(image, qualities.jpeg) for image in photos]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    found["nvJPEG"] = lambda: torch.stack(decode_jpeg(tensors, ImageReadMode.RGB, device))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--judge", choices=list(AT_AGREEMENT), default="EfficientNet-Lite2", help="whose agreement")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers", type=Path, default=Path("build/loader_peers"), help="folder of peers' packages")
    parser.add_argument("--quick", action="store_true", help="batches of 32, 3 rounds")
    parser.add_argument("--out", type=Path, help="folder for gpu_step.md")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.rounds = 32, 3
    if not torch.cuda.is_available():
        print("no CUDA device: left out")
        return

    # Behind what is installed beside us, so that a torchvision there comes first.
    sys.path.append(str(options.peers))
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    step = "a training step of ResNet-50"
    work = {step: training_step(options.batch, device), **decoders(options.judge, options.batch, device)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(options.rounds + 2):
        for name, run in work.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            # The first rounds choose and load kernels.
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name, spent in middle.items():
        share = "" if name == step else f"{spent / (spent + middle[step]):.1%}"
        rows.append([name, f"{1e3 * spent:.2f}", f"{options.batch / spent:,.0f}", share])
    print(f"{torch.cuda.get_device_name(device)}, batches of {options.batch}, {options.rounds} rounds\n")
    table = markdown_table([f"{SIDE}×{SIDE}, agreement of {options.judge}", "ms a batch", "images/s", "share"], rows)
    print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu_step.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

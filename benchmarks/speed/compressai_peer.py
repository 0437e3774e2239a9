"""CompressAI's mean-scale hyperprior as a process of its own, driven by `codec_speed.py` over standard input.

It runs in the same interpreter on the same torch, with the folder that holds CompressAI on its path: CompressAI
requires numpy below 2 and torchvision, neither of which its image models need. torchvision, which cannot be imported
beside a CPU build of torch, is stood in for by an empty module; the model's code is untouched. Weights are random,
since trained ones come from a hub only. That changes no layer and no number of symbols, and near-zero symbols are the
cheap case for its coder.

One request a line: ``{"images": FILE.npy, "repeat": N}``; FILE holds uint8 (count, 3, H, W). The answer is one line of
JSON with seconds of processor time and of wall time for encoding and decoding all of them one by one.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import time
import types

import numpy as np
import torch


def stand_in(name: str) -> types.ModuleType:
    """An empty module of that name, for an import that the models do not use."""
    module = types.ModuleType(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module
    return module


def main() -> None:
    """Answer requests until standard input ends."""
    stand_in("torchvision").transforms = stand_in("torchvision.transforms")  # type: ignore[attr-defined]
    from compressai.zoo import mbt2018_mean  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = mbt2018_mean(quality=3, metric="mse", pretrained=False).eval()
    net.update(force=True)
    print(json.dumps({"ready": True, "parameters": sum(p.numel() for p in net.parameters())}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        images = torch.from_numpy(np.load(request["images"]))
        with torch.inference_mode():
            wall, cpu = time.perf_counter(), time.process_time()
            streams = [net.compress(image[None].float() / 255) for image in images]
            encode = (time.process_time() - cpu, time.perf_counter() - wall)
            wall, cpu = time.perf_counter(), time.process_time()
            for stream in streams:
                (net.decompress(**stream)["x_hat"].clamp(0, 1) * 255).round().to(torch.uint8)
            decode = (time.process_time() - cpu, time.perf_counter() - wall)
        print(json.dumps({"encode": encode, "decode": decode}), flush=True)


if __name__ == "__main__":
    main()

"""Make the two halves that digits-pretrained.yaml merges: one knows 0 to 4, the other 5 to 9.

    python search_spaces/digits/make.py
    python search_spaces/digits/make.py --seed 43 --out runs/digits/halves-43

As in M2N2's experiment: ten steps of Adam over all of a half's training images, rate 0.003.
Prints the share of its half, and of all digits, that each recognizes.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "fitness"))

from digits import data, network  # noqa: E402

TRAINING = 1437  # the first 80 %; the rest is held out


def main(seed: int, out: Path) -> None:
    """Train both halves and write them."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, digits = (part[:TRAINING] for part in data())
    for name, half in {"low": digits < 5, "high": digits >= 5}.items():
        module = network()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
        for _ in range(10):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(images[half]), digits[half])
            loss.backward()
            optimizer.step()
        right = module(images).argmax(dim=1) == digits
        print(f"{name}: {right[half].float().mean():.3f} of its half, {right.float().mean():.3f}")
        save_file(dict(module.state_dict()), out / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    main(options.seed, options.out)

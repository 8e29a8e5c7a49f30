"""Make the two halves that digits-pretrained.yaml merges: one knows 0 to 4, the other 5 to 9.

    python search_spaces/digits/make.py
    python search_spaces/digits/make.py --seed 43 --out runs/digits/halves-43

As in M2N2's experiment: ten steps of Adam over all of a half's training images, rate 0.003.
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
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, digits = (part[:TRAINING] for part in data())
    for name, mine in {"low": digits < 5, "high": digits >= 5}.items():
        module = network()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
        for _ in range(10):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(images[mine]), digits[mine])
            loss.backward()
            optimizer.step()
        found = module(images).argmax(dim=1) == digits
        print(f"{name}: {found[mine].float().mean():.3f} of its half, {found.float().mean():.3f}")
        save_file(dict(module.state_dict()), out / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    main(options.seed, options.out)

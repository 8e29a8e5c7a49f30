"""How well pictures of a text-to-image model fit their prompts: here, by their colour.

An example to adapt. `paint` asks a pipeline of diffusers for pictures, a few at a time and with
noise of their own seeds, so that every candidate is given the same; `judge` says how good they are.
For CLIP's or an aesthetic score, load that model once in `judge` (see docs/other-architectures.md).
A bare denoiser, without text encoder and decoder, is shown as well: what it makes of noise is
looked at as it is.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # items are listed without a wait for torch
    import torch

STEPS = 4  # of denoising; more is dearer, and rarely ranks models otherwise
SIZE = 64  # pixels a side; models of 1024 want more
AT_ONCE = 8  # pictures in a batch: always as many, since batches of other sizes round otherwise

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.1),
    "blue": (0.1, 0.1, 0.9),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}


class Picture(NamedTuple):
    """What is asked for: a prompt, the colour that it names, and the seed of the noise."""

    prompt: str
    colour: tuple[float, float, float]
    seed: int


def items() -> list[Picture]:
    """Return 40 pictures to paint: five colours, eight seeds each."""
    return [
        Picture(f"a plain {name} wall", colour, seed)
        for seed in range(8)
        for name, colour in COLOURS.items()
    ]


def score(model: Any, tokenizer: Any, items: list[Picture]) -> list[float]:
    """Return how well each picture fits, from 0 to 1."""
    scores: list[float] = []
    for first in range(0, len(items), AT_ONCE):
        batch = items[first : first + AT_ONCE]
        filled = batch + batch[:1] * (AT_ONCE - len(batch))
        images = paint(model, filled) if hasattr(model, "scheduler") else denoise(model, filled)
        scores += judge(images, filled)[: len(batch)]
    return scores


def paint(pipeline: Any, wanted: list[Picture]) -> "torch.Tensor":
    """Return (pictures, 3, height, width) in 0 to 1 that a pipeline makes of prompts."""
    import torch

    generators = [torch.Generator().manual_seed(picture.seed) for picture in wanted]
    return pipeline(
        prompt=[picture.prompt for picture in wanted],
        num_inference_steps=STEPS,
        height=SIZE,
        width=SIZE,
        generator=generators,
        output_type="pt",
    ).images


def denoise(unet: Any, wanted: list[Picture]) -> "torch.Tensor":
    """Return (pictures, 3, height, width) in 0 to 1: three channels of what a UNet denoises."""
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(STEPS)
    side, channels = unet.config.sample_size, unet.config.in_channels
    noise = []
    for picture in wanted:
        generator = torch.Generator().manual_seed(picture.seed)
        noise.append(torch.randn(channels, side, side, generator=generator))
    latents = torch.stack(noise).to(unet.device, unet.dtype)
    # in the place of a text encoder: the colour, as the only token of a prompt
    text = torch.zeros(len(wanted), 1, unet.config.cross_attention_dim)
    text[:, 0, :3] = torch.tensor([picture.colour for picture in wanted])
    text = text.to(unet.device, unet.dtype)
    for step in scheduler.timesteps:
        predicted = unet(latents, step, encoder_hidden_states=text).sample
        latents = scheduler.step(predicted, step, latents).prev_sample
    return latents[:, :3].float().sigmoid()


def judge(images: "torch.Tensor", wanted: list[Picture]) -> list[float]:
    """Return how near each picture's mean colour is to the one that was asked for."""
    import torch

    means = images.float().mean((2, 3)).cpu()  # (pictures, 3)
    colours = torch.tensor([picture.colour for picture in wanted])
    return (1.0 - (means - colours).abs().mean(1)).tolist()

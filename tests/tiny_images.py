"""Tiny image models: of diffusers' own classes, with random weights, made in milliseconds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 16,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
PIXART = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "sample_size": 8,
    "patch_size": 2,
    "caption_channels": 16,
    "use_additional_conditions": False,
}
SHAPES = {
    "UNet2DConditionModel": UNET,
    "FluxTransformer2DModel": FLUX,
    "SD3Transformer2DModel": SD3,
    "PixArtTransformer2DModel": PIXART,
}


# Of as many blocks as Stable Diffusion XL and Flux have.
XL = {
    "block_out_channels": (4, 4, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
DEEP = {"num_layers": 19, "num_single_layers": 38}


def tiny_denoiser(class_name, seed, dtype=torch.float32, **changes):
    """A model of diffusers with random weights, none of which is zero."""
    import diffusers

    torch.manual_seed(seed)
    model = getattr(diffusers, class_name)(**SHAPES[class_name] | changes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return torch.nn.Module.to(model, dtype)


def denoised(model, seed=0):
    """What a denoiser makes of noise, whichever class it is of."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator).to(model.dtype)

    name = type(model).__name__
    with torch.no_grad():
        if name == "UNet2DConditionModel":
            return model(noise(1, 4, 8, 8), 10, noise(1, 3, 16)).sample
        if name == "FluxTransformer2DModel":
            return model(
                hidden_states=noise(1, 16, 4),
                encoder_hidden_states=noise(1, 3, 16),
                pooled_projections=noise(1, 16),
                timestep=torch.tensor([0.5]).to(model.dtype),
                img_ids=torch.zeros(16, 3),
                txt_ids=torch.zeros(3, 3),
            ).sample
        if name == "SD3Transformer2DModel":
            return model(
                noise(1, 4, 8, 8), noise(1, 3, 16), noise(1, 16), torch.tensor([10])
            ).sample
        return model(
            noise(1, 4, 8, 8),
            encoder_hidden_states=noise(1, 3, 16),
            timestep=torch.tensor([10]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


def tiny_pipeline(
    folder: Path, seed: int, near: Path | None = None, dtype=torch.float32, **changes
) -> Path:
    """Save a Stable Diffusion of tiny parts; with `near` all but the denoiser and the text encoder
    is that one's."""
    import diffusers
    import transformers

    folder = Path(folder)
    torch.manual_seed(seed if near is None else 0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    torch.manual_seed(seed)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=1000,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=text.to(dtype),
        tokenizer=_clip_tokenizer(folder.parent / "words"),
        unet=tiny_denoiser("UNet2DConditionModel", seed, dtype, **changes),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=100),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _clip_tokenizer(folder):
    """A byte-level tokenizer of CLIP's kind, without merges."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


def tiny_single_file(file: Path, seed: int, extra=()) -> Path:
    """Save a file with the names of Stable Diffusion's own checkpoints; return it."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape):
        return torch.randn(shape, generator=generator).half()

    tensors = {
        "model.diffusion_model.time_embed.0.weight": made(8, 4),
        "model.diffusion_model.input_blocks.0.0.weight": made(8, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": made(8, 8, 3, 3),
        "model.diffusion_model.middle_block.0.in_layers.2.weight": made(8, 8, 3, 3),
        "model.diffusion_model.output_blocks.2.0.in_layers.2.weight": made(8, 8, 3, 3),
        "model.diffusion_model.out.2.bias": made(4),
        "first_stage_model.decoder.conv_in.weight": made(4, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias": made(16),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(5),
        **dict(extra),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return file

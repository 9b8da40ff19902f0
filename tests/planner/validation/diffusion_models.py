"""Denoising networks as diffusers' documentation timed them: weights channels last, prompts of 77 tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Controlled", "controlnet", "sd15", "upscaler"]

Example = tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]
_TOKENS = 77


def _unet(**given: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel(attention_head_dim=8, **given)
    return unet.to(memory_format=torch.channels_last)


def _inputs(channels: int, width: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, channels, 64, 64), torch.zeros(2), torch.randn(2, _TOKENS, width)


def sd15() -> Example:
    """The U-Net of Stable Diffusion 1.5 over latents of 512 x 512 pixels."""
    return _unet(sample_size=64, cross_attention_dim=768), _inputs(4, 768), {"return_dict": False}


def upscaler() -> Example:
    """That of the x4 upscaler, over an image of 64 x 64."""
    unet = _unet(
        sample_size=128,
        in_channels=7,
        out_channels=4,
        block_out_channels=(256, 512, 512, 1024),
        cross_attention_dim=1024,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        only_cross_attention=(True, True, True, False),
        num_class_embeds=1000,
        use_linear_projection=True,
    )
    return unet, (*_inputs(7, 1024), torch.zeros(2, dtype=torch.long)), {"return_dict": False}


class Controlled(nn.Module):
    """Stable Diffusion 1.5 with a ControlNet."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import ControlNetModel

        self.unet = _unet(sample_size=64, cross_attention_dim=768)
        network = ControlNetModel(cross_attention_dim=768, attention_head_dim=8)
        self.controlnet = network.to(memory_format=torch.channels_last)

    def forward(
        self, latents: torch.Tensor, time: torch.Tensor, prompt: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Noise of the latents."""
        down, middle = self.controlnet(latents, time, prompt, image, return_dict=False)
        noise: torch.Tensor = self.unet(
            latents,
            time,
            prompt,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return noise


def controlnet() -> Example:
    """With an edge image of 512 x 512."""
    return Controlled(), (*_inputs(4, 768), torch.randn(2, 3, 512, 512)), {}

"""Kinds that read images and words as `Generic` does, but for one thing; and the list of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.captioners.vlm.blip2 import Blip2, InstructBlip
from hfcap.captioners.vlm.florence2 import Florence2
from hfcap.captioners.vlm.generic import Generic
from hfcap.captioners.vlm.git import Git
from hfcap.captioners.vlm.kosmos2 import Kosmos2
from hfcap.captioners.vlm.mllama import Mllama
from hfcap.captioners.vlm.prefix_kinds import Idefics3, Llava, PaliGemma
from hfcap.captioners.vlm.qwen import QwenVL


class HunyuanVL(Generic):
    """HunyuanOCR (Tencent 2025, arXiv:2511.19575).

    Its own rule counts images across the batch, so that a caption would depend on the image's place in it.
    """

    model_types = ("hunyuan_vl",)

    def prepare(self) -> None:
        """Let each row count its image as the first, as where it is captioned alone."""
        inner = self.model.base_model
        of_batch = type(inner).get_rope_index

        def of_each_row(
            input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **of_images: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            masks = [None] * len(input_ids) if attention_mask is None else attention_mask.split(1)
            found = [
                of_batch(
                    inner,
                    row,
                    attention_mask=mask,
                    **{name: value[number : number + 1] for name, value in of_images.items()},
                )
                for number, (row, mask) in enumerate(zip(input_ids.split(1), masks, strict=True))
            ]
            positions, deltas = zip(*found, strict=True)
            return torch.cat(positions, dim=1), torch.cat(deltas)

        inner.get_rope_index = of_each_row


class VideoLlava(Generic):
    """Video-LLaVA (Lin et al. 2023, arXiv:2311.10122) with images: an encoder for films stands next to that of images.

    Its processor calls pixels by an old name, which forward takes with a warning.
    """

    model_types = ("video_llava",)
    tower_names: ClassVar[tuple[str, ...]] = ("image_tower", "video_tower")

    def image_settings(self) -> dict[str, Any]:
        """Also ask for pixels under the name that forward has for them."""
        return {**super().image_settings(), "return_legacy_image_output": False}

    def _processed(self, prompt: str, images: Sequence[Image.Image]) -> Any:
        values = super()._processed(prompt, images)
        if "pixel_values_images" in values:
            values["pixel_values"] = values.pop("pixel_values_images")
        return values


ADAPTERS: tuple[type[VlmAdapter], ...] = (
    Git,
    Blip2,
    InstructBlip,
    Florence2,
    PaliGemma,
    Idefics3,
    Llava,
    QwenVL,
    Kosmos2,
    Mllama,
    HunyuanVL,
    VideoLlava,
)
"""Kinds that are told by their model type; `Generic` serves all others."""

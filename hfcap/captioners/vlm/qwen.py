"""Qwen2-VL and Qwen2.5-VL (Wang et al. 2024, arXiv:2409.12191; Bai et al. 2025, arXiv:2502.13923).

Images keep their shape in these models; hfcap resizes them to one square, so that all have the same grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import nn

from hfcap.captioners.vlm.adapter import PromptInputs, expand
from hfcap.captioners.vlm.one_size_images import ImagesOfOneSize, square
from hfcap.captioners.vlm.prefix import Prefix
from hfcap.errors import UserError


class QwenImages(ImagesOfOneSize):
    """Qwen's image processor with images out of it, (3, side, side) each; the processor itself gives patches."""

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Resize to the square, process, and put the patches together again."""
        assert self.image_size is not None
        inner = self.image_processor
        output = inner(images=[square(image, self.image_size)], return_tensors="pt")
        merge, side = inner.merge_size, inner.patch_size
        _, rows, columns = output["image_grid_thw"][0].tolist()
        shape = (rows // merge, columns // merge, merge, merge, 3, inner.temporal_patch_size, side, side)
        # A still image is the same in all frames of a patch.
        patches = output["pixel_values"].reshape(shape)[:, :, :, :, :, 0]
        return patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


class QwenVL(Prefix):
    """Positions have three axes: time, row and column of the image; words count alike on all three."""

    model_types = ("qwen2_vl", "qwen2_5_vl")
    default_image_size = 448
    shares_prefix = False

    def image_processor(self) -> Any:
        """Return whole images; `encode` cuts them into patches."""
        return QwenImages(self.processor.image_processor, self.image_size())

    def sees_one_image(self) -> bool:
        """Yes: `QwenImages` puts the patches together."""
        return True

    def check(self) -> None:
        """Also refuse a square that the processor would resize again."""
        super().check()
        inner, size = self.processor.image_processor, self.image_size()
        if self._grid()[0].tolist() != [1, size // inner.patch_size, size // inner.patch_size]:
            side = inner.patch_size * inner.merge_size
            raise UserError(
                f"model.image_size: {size} does not suit this model; give a multiple of {side} whose square lies "
                f"between {inner.size['shortest_edge']:,} and {inner.size['longest_edge']:,} pixels"
            )

    def usual_image_size(self) -> int:
        """Return the side nearest to 448 pixels whose square the processor leaves as it is."""
        inner = self.processor.image_processor
        least, most = math.isqrt(inner.size["shortest_edge"] - 1) + 1, math.isqrt(inner.size["longest_edge"])
        side = inner.patch_size * inner.merge_size
        return max(min(self.default_image_size, most) // side, math.ceil(least / side)) * side

    def image_size(self) -> int:
        """Side of the square that images are resized to."""
        return int(getattr(self.captioner, "image_size", None) or self.usual_image_size())

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The vision transformer with its merger, and the language model."""
        inner = self.model.model
        return {"vision": [inner.visual], "connector": [], "text": [inner.language_model, self.model.lm_head]}

    def _grid(self) -> torch.Tensor:
        return self.prompt_inputs("").extras["image_grid_thw"]

    def plain_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images (B, 3, side, side) into patches (B * patches, values), merged ones next to one another."""
        inner = self.processor.image_processor
        batch, _, height, width = pixel_values.shape
        side, merge = inner.patch_size, inner.merge_size
        rows, columns = height // (side * merge), width // (side * merge)
        patches = pixel_values.reshape(batch, 3, rows, merge, side, columns, merge, side)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
        patches = patches.expand(*patches.shape[:6], inner.temporal_patch_size, side, side)
        return patches.reshape(batch * rows * columns * merge**2, -1)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return merged patches of images (B, 3, side, side)."""
        grids = expand(self._grid(), pixel_values.shape[0], pixel_values.device)
        features = self.model.model.get_image_features(self.plain_pixels(pixel_values), grids, return_dict=True)
        return torch.stack(list(features.pooler_output))

    def positions(self, prompt: PromptInputs, device: torch.device) -> torch.Tensor:
        """Three-axis positions (3, 1, N + 1) from the model's own rule."""
        positions, _ = self.model.model.get_rope_index(
            prompt.input_ids[None].to(device), **{name: value.to(device) for name, value in prompt.extras.items()}
        )
        return positions

"""Qwen2-VL and Qwen2.5-VL (Wang et al. 2024, arXiv:2409.12191; Bai et al. 2025, arXiv:2502.13923).

Images keep their shape, each with a grid of its own, unless `model.image_size` makes all of them one square.
"""

from __future__ import annotations

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
    shares_prefix = False

    def image_processor(self) -> Any:
        """Return patches of images that keep their shape, or squares as a whole, which `encode` cuts into patches."""
        size = self._square()
        return super().image_processor() if size is None else QwenImages(self.processor.image_processor, size)

    def sees_one_image(self) -> bool:
        """Where images become a square: `QwenImages` puts the patches together."""
        return self._square() is not None

    def check(self) -> None:
        """Also refuse a square that the processor would resize again."""
        super().check()
        inner, size = self.processor.image_processor, self._square()
        if size is not None and self._grid()[0].tolist() != [1, size // inner.patch_size, size // inner.patch_size]:
            side = inner.patch_size * inner.merge_size
            raise UserError(
                f"model.image_size: {size} does not suit this model; give a multiple of {side} whose square lies "
                f"between {inner.size['shortest_edge']:,} and {inner.size['longest_edge']:,} pixels"
            )

    def shape_matters(self) -> bool:
        """Always: patches of a grid."""
        return True

    def _square(self) -> int | None:
        """Side of the square that images are resized to; None where they keep their shape."""
        side = getattr(self.captioner, "image_size", None)
        return None if side is None else int(side)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The vision transformer with its merger, and the language model."""
        inner = self.model.model
        return {"vision": [inner.visual], "connector": [], "text": [inner.language_model, self.model.lm_head]}

    def _grid(self) -> torch.Tensor:
        return self.prompt_inputs(self.captioner.prompt).extras["image_grid_thw"]

    def plain_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images (B, 3, side, side) into patches (B * patches, values), merged ones next to one another."""
        if self._square() is None:
            return super().plain_pixels(pixel_values)
        inner = self.processor.image_processor
        batch, _, height, width = pixel_values.shape
        side, merge = inner.patch_size, inner.merge_size
        rows, columns = height // (side * merge), width // (side * merge)
        patches = pixel_values.reshape(batch, 3, rows, merge, side, columns, merge, side)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
        patches = patches.expand(*patches.shape[:6], inner.temporal_patch_size, side, side)
        return patches.reshape(batch * rows * columns * merge**2, -1)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return merged patches of images (B, 3, side, side), or of patches (B, patches, values)."""
        count = len(pixel_values)
        grids = expand(self._grid(), count, pixel_values.device)
        output = self.model.model.get_image_features(self.plain_pixels(pixel_values), grids, return_dict=True)
        self.note_form(output, count)
        return torch.stack(list(output.pooler_output))

    def positions(self, prompt: PromptInputs, device: torch.device) -> torch.Tensor:
        """Three-axis positions (3, 1, N + 1) from the model's own rule."""
        positions, _ = self.model.model.get_rope_index(
            prompt.input_ids[None].to(device), **{name: value.to(device) for name, value in prompt.extras.items()}
        )
        return positions

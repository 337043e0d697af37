"""Small networks of timm as folders that hold pretrained ones: those the captioners are asked for most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from tests.captioners.helpers import make_lively

SIDE = 64
"""Pixels of an image's side; Inception needs 75 at least."""

NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    # The layers that only a classifier reads, made small: they are taken out anyway.
    "vgg": ("vgg11", {"mlp_ratio": 0.01}, (2, 2)),
    "inception": ("inception_v3", {}, (2, 2)),
    "efficientnet": ("efficientnet_b0", {}, (2, 2)),
    "mobilenet": ("mobilenetv3_small_050", {}, (2, 2)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": SIDE, "window_size": 2, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]},
        (8, 8),
    ),
}
"""Name -> timm's name, its arguments, and the grid of cells that it gives."""


def side_of(name: str) -> int:
    """Side of the images that a network gets here."""
    return 107 if name == "inception" else SIDE


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """What timm keeps beside pretrained weights about their images."""
    side = side_of(name)
    return {
        "input_size": [3, side, side],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        **changes,
    }


def write_network(folder: Path, name: str, **changes: Any) -> Path:
    """Write a network with random weights as `save_pretrained` of transformers' wrapper does."""
    architecture, arguments, _ = NETWORKS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "timm_wrapper",
        architecture=architecture,
        model_args=dict(arguments),
        pretrained_cfg=settings(name, **changes),
    )
    model: Any = AutoModel.from_config(config)
    make_lively(model, seed=0)
    with torch.no_grad():
        # Fresh batch norms let nothing through after some layers, and every image would look alike.
        model.train()
        for _ in range(3):
            model(pixel_values=torch.randn(4, 3, side_of(name), side_of(name)))
    model.eval()
    model.save_pretrained(folder)
    return folder

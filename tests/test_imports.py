"""What starts fast stays fast: the command line's help and the recipe tree do not import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "matplotlib", "evaluate"}


def imported_by(*arguments: str) -> set[str]:
    """Top-level packages that a fresh interpreter imports."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import hfcap"],
        ["-c", "import hfcap.recipe.loading, hfcap.registry as r; r.names('captioners'), r.names('metrics')"],
        ["-c", "import hfcap.cli"],
        ["-c", "import hfcap.comparison"],
        ["-m", "hfcap", "--help"],
        ["-m", "hfcap", "train", "--help"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    imported = imported_by(*arguments)
    assert "hfcap" in imported
    assert imported & HEAVY == set()


def test_captioning_without_an_adapter_leaves_peft_alone() -> None:
    # PEFT brings bitsandbytes, which brings torch's compiler: seconds before the first caption.
    imported = imported_by("-c", "import hfcap.captioning, hfcap.captioners.vit_gpt2, hfcap.captioners.ensemble")
    assert "transformers" in imported
    assert imported & {"peft", "bitsandbytes", "datasets", "evaluate", "matplotlib"} == set()

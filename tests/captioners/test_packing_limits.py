"""Language models that packing fits only in part, or not at all: the loss is that of one row per caption."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfcap.captioners.clip_prefix import ClipPrefix, ClipPrefixOptions
from hfcap.data.packing import pack_captions
from hfcap.generation import verdicts
from hfcap.generation.rows import as_rows
from hfcap.generation.verdicts import forget_verdicts
from hfcap.schema import IGNORED_LABEL
from tests.captioners.backbones import SMALL_LANGUAGE_MODEL
from tests.captioners.helpers import CORPUS, make_lively

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", **SMALL_LANGUAGE_MODEL, "sliding_window": 12},
    "gemma2": {"model_type": "gemma2", **SMALL_LANGUAGE_MODEL, "sliding_window": 12},
    "gemma3": {"model_type": "gemma3_text", **SMALL_LANGUAGE_MODEL, "sliding_window": 12},
    "qwen2": {
        "model_type": "qwen2",
        **SMALL_LANGUAGE_MODEL,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 0,
    },
    "gpt_neo": {
        "model_type": "gpt_neo",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 12,
        "max_position_embeddings": 96,
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", **SMALL_LANGUAGE_MODEL, **_EXPERTS},
    "qwen3_moe": {"model_type": "qwen3_moe", **SMALL_LANGUAGE_MODEL, "num_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 32},
    "olmoe": {"model_type": "olmoe", **SMALL_LANGUAGE_MODEL, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"model_type": "gpt_oss", **SMALL_LANGUAGE_MODEL, **_EXPERTS, "sliding_window": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _asked_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path))
    forget_verdicts()
    verdicts._say.cache_clear()  # each warning once in a process


def captioner_of(config: dict[str, Any]) -> ClipPrefix:
    torch.manual_seed(0)
    options = ClipPrefixOptions.model_validate(ClipPrefix.tiny() | {"language_model_config": config})
    captioner = ClipPrefix.build(options, CORPUS)
    make_lively(captioner.model, seed=1)
    captioner.model.eval()
    return captioner


def losses(captioner: ClipPrefix, words: list[list[list[int]]]) -> tuple[float, float, list[float]]:
    """Loss as training computes it and by the model's own forward, and gradients of the former."""
    states = torch.randn(len(words), 1, captioner.model.config.vision_config.hidden_size)
    packed = pack_captions(words, captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)
    entropy = torch.nn.functional.cross_entropy
    loss = entropy(captioner.logits(states, packed).flatten(0, 1), packed.labels.flatten(), ignore_index=IGNORED_LABEL)
    rows = as_rows(packed)
    plain = rows.packed(captioner.plain_logits(states.repeat_interleave(rows.per_image, dim=0), rows.input_ids))
    expected = entropy(plain.flatten(0, 1), packed.labels.flatten(), ignore_index=IGNORED_LABEL)
    weights = [weight for weight in captioner.model.language_model.parameters() if weight.requires_grad]
    found, right = (
        torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) for value in (loss, expected)
    )
    differences = [
        float((a - b).abs().max() / right_scale)
        for a, b in zip(found, right, strict=True)
        if a is not None and b is not None and (right_scale := b.abs().max()) > 1e-6
    ]
    return float(loss.detach()), float(expected.detach()), differences


def captions(length: int) -> list[list[list[int]]]:
    return [[[5 + (n * 7) % 200 for n in range(length)], [9, 12, 30]], [[40 + n for n in range(length)]]]


@pytest.mark.parametrize("name", WINDOWED)
def test_captions_beyond_a_window_have_the_loss_of_the_plain_forward(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The packed mask has no window: gradients were 50 to 126 % off as soon as prefix and caption exceeded it."""
    captioner = captioner_of(WINDOWED[name])
    for length in (3, 40):
        loss, expected, differences = losses(captioner, captions(length))
        assert loss == pytest.approx(expected, rel=1e-5)
        assert max(differences) < 1e-3
    said = " ".join(capsys.readouterr().err.split())
    assert "packing of captions into rows of 64 tokens" in said and "one row for each caption is used" in said


@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts_are_trained_like_others(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their heads ask the body for the routers' logits: a traceback."""
    captioner = captioner_of(EXPERTS[name])
    loss, expected, differences = losses(captioner, captions(6))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert max(differences) < 1e-3
    assert "packing" not in capsys.readouterr().err


def test_rows_within_what_was_checked_stay_packed(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "mistral", **SMALL_LANGUAGE_MODEL, "sliding_window": 512}
    captioner = captioner_of(config)
    for length in (3, 30, 60):
        losses(captioner, captions(length))
    assert captioner._packed and all(captioner.verdicts.values())
    assert "packing" not in capsys.readouterr().err

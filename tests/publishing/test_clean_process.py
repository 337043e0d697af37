"""What code of a published model finds in the process that tries it, and how its source is put together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfcap.files import write_json
from hfcap.publishing.clean_process import Job, run_clean
from hfcap.publishing.published import PublishedModel

pytestmark = pytest.mark.contract

SHOW = "import os; print(*sorted(name for name in os.environ if os.environ[name].startswith('private-')))"


def test_code_of_strangers_finds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "private-0123456789")
    monkeypatch.setenv("HARMLESS", "private-no")
    (tmp_path / "photo.jpg").write_bytes(b"")
    job = Job("", SHOW, [tmp_path / "photo.jpg"])
    assert run_clean({"job": job})["job"].captions == ["HARMLESS"]
    assert run_clean({"job": job}, "private-token")["job"].captions == ["HARMLESS HF_TOKEN"]


@pytest.mark.parametrize("base", ["me/base", "image = open('owned', 'w') #", "a\nimage = open('owned', 'w') #"])
def test_names_from_a_repository_stay_inside_their_quotes(base: str, tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": base, "revision": "image = 1"})
    model = PublishedModel(tmp_path, [], "me/model", "0" * 40, closed=False)
    load, caption = model.code()
    compile(load, "load", "exec")
    compile(caption, "caption", "exec")
    assert caption.startswith("image = ") and 'Image.open("photo.jpg")' in caption


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    load = f"import torch; torch.load({str(tmp_path / 'pytorch_model.bin')!r}, weights_only=True)"
    error = run_clean({"job": Job(load, "", [])})["job"].error
    assert error is not None and "only safetensors are loaded here" in error

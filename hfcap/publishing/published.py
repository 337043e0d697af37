"""A published model without its weights: what its small files say, and the code that captions with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from hfcap.card.usage_code import brings_code, usage_code
from hfcap.files import read_json
from hfcap.publishing import hub

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model repository at one commit, or a folder that will become one.

    Attributes:
        files: folder with at least everything but the weights.
        names: all files of the repository.
        location: Hub id or folder that the code loads.
        revision: commit that the code loads, for a Hub id.
        closed: only somebody with a token can load it.
    """

    files: Path
    names: Sequence[str]
    location: str
    revision: str | None
    closed: bool

    @property
    def base(self) -> tuple[str, str | None] | None:
        """Id and revision of the base model, where the repository is an adapter."""
        adapter = self._json("adapter_config.json")
        return (str(adapter.get("base_model_name_or_path")), adapter.get("revision")) if adapter else None

    @property
    def brings_code(self) -> bool:
        """Whether loading runs modelling code that does not belong to transformers."""
        return brings_code(self.files)

    @property
    def needs_token(self) -> bool:
        """Whether the repository, or the base of an adapter, is not open to strangers."""
        if self.closed or self.base is None:
            return self.closed
        base_id, revision = self.base
        doing = f"reading the base model {base_id}"
        info = hub.with_retries(lambda: HfApi().model_info(base_id, revision=revision), doing)
        return bool(info.private or info.gated)

    def shown_code(self, repo_id: str) -> str:
        """Return the code that hfcap's card shows for this model."""
        return usage_code(repo_id, self.files, self.brings_code, self._model_type(), self.base)

    def code(self, decoding: str | None = None, only_safetensors: bool = False) -> tuple[str, str]:
        """Return the code that loads exactly this commit, and the code that captions photo.jpg (see `usage_code`)."""
        code = usage_code(
            self.location,
            self.files,
            self.brings_code,
            self._model_type(),
            self.base,
            self.revision,
            decoding,
            only_safetensors,
        )
        # With the line break: a hostile name in the code may hold the words, but never a line break (JSON escapes it).
        load, _, caption = code.partition("\nimage = ")
        return f"{load}\n", f"image = {caption}"

    def _model_type(self) -> str | None:
        return self._json("config.json").get("model_type")

    def _json(self, name: str) -> dict[str, Any]:
        value = read_json(self.files / name, "configuration") if (self.files / name).is_file() else {}
        return value if isinstance(value, dict) else {}


def download_small(repo_id: str, revision: str | None, folder: Path) -> PublishedModel:
    """Fetch everything but the weights into `folder`, at the commit that the revision names now.

    Raises:
        UserError: no such repository or revision. WorkError: the Hub or the network failed.
    """
    info = hub.with_retries(lambda: HfApi().model_info(repo_id, revision=revision), f"reading {repo_id}")
    commit = str(info.sha)
    ignored = ["*.safetensors", "*.h5", "*.msgpack", "*.onnx", "*.gguf", *(f"*{suffix}" for suffix in PICKLES)]
    with hub.quiet_unless_terminal():
        hub.with_retries(
            lambda: snapshot_download(repo_id, revision=commit, local_dir=folder, ignore_patterns=ignored),
            f"reading {repo_id}",
        )
    names = [sibling.rfilename for sibling in info.siblings or []]
    return PublishedModel(folder, names, repo_id, commit, bool(info.private or info.gated))

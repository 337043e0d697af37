from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from hfcap.publishing.push import publish
from hfcap.run_directory import RunDirectory
from tests.hub_server import Hub


def test_a_stranger_loads_what_was_published(run: RunDirectory, hub: Hub, tmp_path: Path) -> None:
    result = publish(run, "alice/tiny")
    assert result.url == f"{hub.endpoint}/alice/tiny"
    tree = hub.store.repository("alice/tiny").tree("main")
    assert set(tree) - {".gitattributes"} == {file.path for file in result.files} == set(result.uploaded)
    home = tmp_path / "stranger"
    home.mkdir()
    Image.new("RGB", (40, 30), "red").save(home / "photo.jpg")
    code = (
        "import sys; sys.modules['hfcap'] = None\n"
        "from transformers import pipeline\n"
        "print(pipeline('image-text-to-text', 'alice/tiny')('photo.jpg', text='')[0]['generated_text'])\n"
    )
    import os

    environment = {**os.environ, **hub.environment(home)}
    environment.pop("HF_TOKEN")
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""What `transformers serve`, started for real as a card says, says of images is what the model says here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hfcap
from hfcap.captioners.openai_endpoint import OpenAIEndpoint, OpenAIEndpointOptions
from hfcap.card.usage_code import serving
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import write_image
from tests.captioners.itt_models import itt
from tests.captioners.transformers_server import needs_serving, transformers_serve

pytestmark = [needs_serving, pytest.mark.timeout(300)]

PROMPT = "Describe the image."
OPTIONS = GenerateOptions(num_beams=1, max_new_tokens=8)


@dataclass
class Served:
    model: Path
    base_url: str
    images: list[Path]


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    itt(request.param, prompt=PROMPT).save(folder / "model", OPTIONS)
    sizes = ((64, 64), (96, 64), (64, 128))
    images = [write_image(folder / f"{number}.png", number, size) for number, size in enumerate(sizes)]
    said = serving(str(folder / "model"), folder / "model", has_code=False, is_adapter=False)
    assert said is not None and f"the prompt `{PROMPT}`" in said["text"]
    (line,) = [one for one in said["commands"].splitlines() if one.startswith("transformers serve")]
    with transformers_serve(folder / "model", shlex.split(line, comments=True)[1:]) as base_url:
        yield Served(folder / "model", base_url, images)


def test_captions_are_those_of_the_model_here(served: Served, tmp_path: Path) -> None:
    here = hfcap.load_captioner(served.model).caption(served.images)
    options = OpenAIEndpointOptions(base_url=served.base_url, prompt=PROMPT, image_format="png")
    OpenAIEndpoint.build(options, []).save(tmp_path, OPTIONS)
    there = hfcap.load_captioner(tmp_path).caption(served.images)
    assert [one.text for one in there] == [one.text for one in here]
    assert len({one.text for one in here}) > 1
    assert [one.cut for one in there] == [one.cut for one in here]
    assert all(one.usage is not None and one.usage["prompt_tokens"] > 5 for one in there)


def test_the_address_alone_is_enough(served: Served) -> None:
    captioner = hfcap.load_captioner(served.base_url)
    assert captioner.caption(served.images[0], PROMPT, max_new_tokens=8).text


def test_another_model_is_refused_with_its_name(served: Served, tmp_path: Path) -> None:
    OpenAIEndpoint.build(OpenAIEndpointOptions(base_url=served.base_url, model="other"), []).save(tmp_path, OPTIONS)
    with pytest.raises(UserError, match=r"refuses the request: HTTP 400 \(Server is pinned to .*check model\.model"):
        hfcap.load_captioner(tmp_path).caption(served.images[0])

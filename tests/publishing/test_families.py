"""Every family, full, adapter and merged, published to the loopback Hub and used as a stranger would.

One clean process for all: starting one for each would take minutes. Families are found in the registry.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from pydantic import ValidationError

from hfcap import registry
from hfcap.app.space import stage_demo
from hfcap.card.example_images import drawn_images
from hfcap.card.requirements import installed_versions
from hfcap.publishing.clean_process import Job, JobResult, run_clean
from hfcap.publishing.push import publish, push_folder
from hfcap.publishing.staging import stage_files
from hfcap.publishing.verify import Verification, verify_all
from hfcap.run.stages import merged_model
from hfcap.run_directory.paths import RunDirectory
from tests.hub_server import Hub, running_hub
from tests.publishing.run_builder import adapter_run, build_run

# One fixture does the work of all tests here.
pytestmark = pytest.mark.timeout(900)

FAMILIES = registry.names("captioners")
ADAPTED = {
    "blip": ["query", "predictions.decoder"],
    "image_text_to_text": ["query", "output"],
    "show_attend_tell": ["head"],
    **{name: ["c_attn", "lm_head"] for name in ("clip_prefix", "cnn_transformer", "image_transformer", "vit_gpt2")},
}
PUBLISHED = [(family, method) for family in FAMILIES for method in ("full", "adapter", "merged")]


def limits_of(family: str) -> dict[str, str]:
    """What a family says is not possible, with the reason."""
    registered = registry.load("captioners", family).REGISTERED
    fitted = {} if registered.trains_by_gradients else {"adapter": "it is fitted in one pass"}
    return {**fitted, **registered.publishing_limits}


def prompt_of(family: str) -> str:
    """A prompt, where the family's options allow one."""
    registered = registry.load("captioners", family).REGISTERED
    try:
        registered.options_class(**registered.tiny(), prompt="a red")
    except ValidationError:
        return ""
    return "a red"


@dataclass
class Published:
    """What happened to all repositories."""

    hub: Hub
    reports: dict[str, Verification]
    pipelines: dict[str, JobResult]
    space: JobResult


def publish_family(family: str, folder: Path) -> list[str]:
    """Publish what the family can, each as alice/<family>-<method>; returns the ids."""
    limits, ids = limits_of(family), []

    def push(run: RunDirectory, method: str, model: Path | None = None) -> None:
        repo_id = f"alice/{family}-{method}"
        publish(run, repo_id, verified=False, model=model)
        ids.append(repo_id)

    if "publish" in limits:
        return []
    base = f"alice/{family}-full"
    run = build_run(folder / family, family, prompt=prompt_of(family), publish={"base_model": base})
    push(run, "full")
    if "adapter" not in limits:
        local = folder / f"{family}-base"
        shutil.copytree(run.model, local)
        # The run used a copy on this machine; the Hub's id comes from the recipe.
        # The head is adapted too, which most families tie to their word embeddings.
        base_model = {"id": str(local), "revision": None, "role": "captioner", "local": True}
        adapter_run(run, base_model, str(local), target_modules=ADAPTED[family])
        push(run, "adapter")
        shutil.rmtree(run.path / "verification")
        push(run, "merged", merged_model(run, wanted=True))
    return ids


PIPELINE = """
from PIL import Image
from transformers import pipeline
pipe = pipeline("image-text-to-text", {repo_id!r}, trust_remote_code=True)
greedy = dict(max_new_tokens=5, num_beams=1)
"""
CAPTION = """
print(pipe("photo.jpg", text="", generate_kwargs=greedy)[0]["generated_text"], end="|")
pixels = pipe.processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
tokens = pipe.model.generate(**pixels, **greedy)
print(pipe.processor.decode(tokens[0], skip_special_tokens=True), end="|")
"""
"""The pipeline's caption, and the one that the model gives without the pipeline."""


SPACE = """
import json, sys
sys.path.insert(0, {space!r})
from app import CAPTIONERS
from page_models import caption_with_all
"""
SPACE_CAPTIONS = """
print(json.dumps(dict(zip(CAPTIONERS, caption_with_all(CAPTIONERS, "photo.jpg", 0, {})))))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("families")
    with running_hub(folder) as hub, pytest.MonkeyPatch.context() as patch:
        ids = [repo_id for family in FAMILIES for repo_id in publish_family(family, folder)]
        jobs = own_jobs(ids, folder)
        ids += others(folder)
        results: dict[str, JobResult] = {}

        def run_with_own(
            of_verification: Mapping[str, Job], token: str | None = None, packages: Sequence[str] | None = None
        ) -> dict[str, JobResult]:
            """Have the process that finds all packages do the jobs of this file too: one takes ten seconds to start."""
            if packages is not None:
                return run_clean(of_verification, token, packages)
            found = run_clean({**of_verification, **jobs}, token)
            results.update({name: found.pop(name) for name in jobs})
            return found

        patch.setattr("hfcap.publishing.verify.run_clean", run_with_own)
        reports = verify_all(dict.fromkeys(ids), trust_remote_code=True)
        yield Published(hub, {report.repo_id: report for report in reports}, results, results["space"])


def own_jobs(ids: list[str], folder: Path) -> dict[str, Job]:
    """What the pipeline of transformers and a Space say with the published models; the Space is pushed for it."""
    image = folder / "photo.jpg"
    image.write_bytes(drawn_images()["ball.png"])
    full = [repo_id for repo_id in ids if repo_id.endswith("-full")]
    families = [repo_id.removeprefix("alice/").removesuffix("-full") for repo_id in full]
    jobs = {
        name: Job(PIPELINE.format(repo_id=repo_id), CAPTION, [image])
        for name, repo_id in zip(families, full, strict=True)
        if "pipeline" not in limits_of(name)
    }
    # Adapters load alike in all families: one is enough for the Space.
    shown = full + [repo_id for repo_id in ids if repo_id.endswith("-adapter")][:1]
    push_folder(stage_demo(shown, folder / "space", "Demo", True), "alice/demo", False, kind="space")
    space = snapshot_download("alice/demo", repo_type="space", local_dir=folder / "downloaded")
    return {**jobs, "space": Job(SPACE.format(space=space), SPACE_CAPTIONS, [image])}


def others(folder: Path) -> list[str]:
    """Publish repositories that are not as hfcap leaves them; returns the ids."""
    changed = build_run(folder / "changed")
    stage_files(changed, repo_id="alice/changed")
    record = changed.publish / "verification" / "captions.json"
    content = json.loads(record.read_text())
    content["captions"]["verification/ball.png"] = "a caption that the model does not give"
    record.write_text(json.dumps(content))
    push_folder(changed.publish, "alice/changed", private=False)

    injected = build_run(folder / "injected")
    stage_files(injected, repo_id="alice/injected")
    card = injected.publish / "README.md"
    card.write_text(card.read_text().replace("from PIL import Image", "from PIL import Image; open('owned', 'w')"))
    push_folder(injected.publish, "alice/injected", private=False)

    api = HfApi()
    for name, ignored in (("foreign", None), ("pickled", "*.safetensors"), ("empty", "*")):
        api.create_repo(f"alice/{name}")
        api.upload_folder(repo_id=f"alice/{name}", folder_path=changed.model, ignore_patterns=ignored)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="pytorch_model.bin", repo_id="alice/pickled")
    return ["alice/changed", "alice/injected", "alice/foreign", "alice/pickled", "alice/empty"]


@pytest.mark.contract
@pytest.mark.parametrize(("family", "method"), PUBLISHED)
def test_it_captions_like_the_run_in_a_clean_process(family: str, method: str, published: Published) -> None:
    limits = limits_of(family)
    repo_id = f"alice/{family}-{method}"
    if "publish" in limits or (method != "full" and "adapter" in limits):
        assert repo_id not in published.reports
        return
    report = published.reports[repo_id]
    report.require()
    assert [comparison.agrees for comparison in report.comparisons] == [True, True]
    # These runs were not scored (tests/publishing/test_verify_scores.py has some that were).
    unchecked = {check.name: check.outcome for check in report.checks if check.outcome != "passed"}
    numbers = ("weights", "scores", "predictions", "scores computed again")
    assert unchecked and unchecked == dict.fromkeys((name for name in numbers if name in unchecked), "not checked")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_names_its_base_on_the_hub_pinned(family: str, published: Published) -> None:
    if {"publish", "adapter"} & set(limits_of(family)):
        return
    repository = published.hub.store.repository(f"alice/{family}-adapter")
    config = json.loads(repository.content("main", "adapter_config.json"))
    base = published.hub.store.repository(f"alice/{family}-full")
    assert (config["base_model_name_or_path"], config["revision"]) == (base.repo_id, base.resolve("main"))
    card = repository.content("main", "README.md").decode()
    assert f"base_model: {base.repo_id}\n" in card and "base_model_relation: adapter\n" in card
    assert "model.safetensors" not in repository.tree("main")
    merged = published.hub.store.repository(f"alice/{family}-merged").tree("main")
    assert "model.safetensors" in merged and "adapter_config.json" not in merged


@pytest.mark.contract
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipeline_of_transformers_captions_with_it(family: str, published: Published) -> None:
    if {"publish", "pipeline"} & set(limits_of(family)):
        return
    result = published.pipelines[family]
    assert result.error is None, result.error
    with_pipeline, without, _ = (text.strip() for text in result.captions[0].split("|"))
    assert with_pipeline == without


def test_a_space_captions_with_all_of_them(published: Published) -> None:
    assert published.space.error is None, published.space.error
    shown = {repo_id: " ".join(text.split()) for repo_id, text in json.loads(published.space.captions[0]).items()}
    recorded = {
        report.repo_id: comparison.recorded
        for report in published.reports.values()
        if report.repo_id in shown
        for comparison in report.comparisons
        if comparison.image == "ball.png"
    }
    assert shown == recorded and len(shown) > 3
    tree = published.hub.store.repository("alice/demo", "space").tree("main")
    assert set(tree) - {".gitattributes"} == {
        "README.md",
        "app.py",
        "examples/ball.png",
        "examples/houses.png",
        "interface.py",
        "page_files.py",
        "page_look.py",
        "page_models.py",
        "requirements.txt",
        "text.py",
        "written-by-hfcap.txt",
    }
    # Pillow comes with gradio, and not in every version.
    asked_for = published.hub.store.repository("alice/demo", "space").content("main", "requirements.txt").decode()
    versions = installed_versions(["peft", "torch", "transformers"])
    assert asked_for == "".join(f"{name}=={version}\n" for name, version in versions.items())


def test_verification_notices_other_captions(published: Published) -> None:
    hashes, failure = published.reports["alice/changed"].failures
    assert hashes.name == "file hashes" and "verification/captions.json is not the file" in hashes.found
    assert failure.name == "captions" and "1 of 2" in failure.found and "ball.png" in failure.found


def test_code_that_somebody_wrote_into_a_card_is_never_run(published: Published) -> None:
    (failure,) = published.reports["alice/injected"].failures
    assert "other code than hfcap writes" in failure.found
    names = [check.name for check in published.reports["alice/injected"].checks]
    assert names[:2] == ["files", "card"] and names[-1] == "code", "nothing that runs code comes after"


def test_repositories_of_others_are_checked_as_far_as_possible(published: Published) -> None:
    outcomes = {check.name: check.outcome for check in published.reports["alice/foreign"].checks}
    assert outcomes == {
        "files": "passed",
        "card": "failed",
        "code": "not checked",
        "packages": "not checked",
        "loads without hfcap": "passed",
        "captions": "not checked",
    }
    (pickled,) = published.reports["alice/pickled"].checks
    assert pickled.outcome == "failed" and "pytorch_model.bin is a pickle" in pickled.found
    (empty,) = published.reports["alice/empty"].checks
    assert empty.outcome == "failed" and "not a model of transformers" in empty.found

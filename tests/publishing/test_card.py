"""The card: true to the run, valid for the Hub, harmless whatever the run contains, and useful."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from hfcap.app.page_models import open_image
from hfcap.card.front_matter import eval_results_file
from hfcap.card.kept_sections import MARK, split_front_matter
from hfcap.card.render import missing_facts, render_card, write_card
from hfcap.card.run_facts import read_card_input
from hfcap.data.images import FileImage, decode_image
from hfcap.errors import UserError
from hfcap.metrics.shared.images import plain_decode
from hfcap.recipe.loading import dump_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from scripts.hub_server.card_rules import check_card
from tests.publishing.run_builder import (
    CAPTIONS,
    ENVIRONMENT,
    SUMMARY,
    build_run,
    recipe_values,
    write_json,
    write_records,
)

HOSTILE = [
    "<script>alert(1)</script> a dog",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "a | b | c\n## Injected heading\n- item",
    "---\nlicense: mit\n---\n{{ 7 * 7 }} {% raw %} ${HOME}",
    "``` code ` fence ~~~ https://evil.example www.evil.example me@evil.example",
    "\u202egnp.exe \x1b[31mred\x07 *bold* _under_ # ~strike~ &lt;b&gt; $x^2$",
]


LIMITS = "## Limits and out-of-scope use"


def metadata_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(split_front_matter(card)[0])


def rewrite(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_the_hub_accepts_the_metadata_and_they_say_what_the_run_says(run: RunDirectory) -> None:
    card = render_card(run)
    assert check_card(card) == ([], [])
    metadata = metadata_of(card)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert {"image-captioning", "image-to-text", "hfcap", "blip"} <= set(metadata["tags"])
    [result] = metadata["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test" and result["dataset"]["args"]["decoding"]["num_beams"] == 2
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    cider = json.loads(run.scores("test").read_text())["metrics"]["cider"]
    assert values == {"bleu_1": 70.0, "bleu_4": 31.2, "rouge_l": 55.0, "cider": round(100 * cider, 2)}


def test_the_card_shows_scores_baselines_samples_settings_and_cost(run: RunDirectory) -> None:
    card = render_card(run)
    assert "| BLEU-4 | **31.2** | 29.0 to 33.0 | 0.0 | 0.0 |" in card
    for caption in CAPTIONS:
        assert caption in card
    changed = card.split("differ from hfcap's defaults")[1].split("## ")[0]
    assert "| `train.learning_rate` | `0.001` |" in changed
    # A key that a later hfcap adds would otherwise change every card.
    assert "weight_decay" not in card
    for fact in (
        "120 | 600",
        "40 optimiser updates (4 epochs)",
        "2 cores of Example CPU",
        "Python 3.11.9",
        "li2022blip",
    ):
        assert fact in card
    worst = card.split("### The worst captions")[1].split("## ")[0]
    per_image = json.loads(run.scores("test").read_text())["per_image"]
    lowest = sorted(per_image, key=lambda i: per_image[i]["cider"])[:3]
    assert [name for name in re.findall(r"images/(\d+)\.jpg", worst)] == lowest


def test_images_are_shown_only_under_a_licence(run: RunDirectory, tmp_path: Path) -> None:
    assert "![sample image]" not in render_card(run) and "widget" not in metadata_of(render_card(run))
    licensed = build_run(tmp_path / "run", publish={"samples_license": "cc0-1.0"})
    recorded = {f"samples/{n}.jpg": f"caption {n}" for n in range(1, 7)}
    rewrite(licensed.path / "verification" / "captions.json", captions=recorded)
    card = render_card(licensed)
    assert check_card(card) == ([], [])
    examples = metadata_of(card)["widget"]
    assert [example["output"]["text"] for example in examples] == [recorded[example["src"]] for example in examples]
    shown = re.findall(r"!\[sample image\]\((samples/\d\.jpg)\)", card)
    assert sorted(shown) == [f"samples/{n}.jpg" for n in range(1, 7)]
    assert all((licensed.path / name).is_file() for name in shown)


def test_what_the_code_prints_is_what_was_recorded_for_that_file(run: RunDirectory) -> None:
    recorded = {"verification/ball.png": "a red ball", "verification/houses.png": "two houses"}
    rewrite(run.path / "verification" / "captions.json", captions=recorded)
    assert (
        "[`verification/ball.png`](verification/ball.png) of this repository it prints:\n\n```text\na red ball\n```"
        in (render_card(run))
    )


def test_a_image_that_the_samples_name_must_be_a_published_one(run: RunDirectory) -> None:
    (run.path / "secret.jpg").write_bytes(b"x")
    rows = [{**row, "image": "samples/../secret.jpg"} for row in json.loads(run.samples.read_text())]
    write_json(run.samples, rows)
    assert "secret" not in render_card(run)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "verification/none.png"])
def test_recorded_images_stay_inside(run: RunDirectory, name: str) -> None:
    (run.path.parent / "outside.png").write_bytes(b"x")
    rewrite(run.path / "verification" / "captions.json", captions={name: "a dog"})
    with pytest.raises(UserError, match=r"is no image of this folder"):
        render_card(run)


def test_measured_emissions_are_shown_and_unmeasured_ones_are_the_users(run: RunDirectory) -> None:
    assert "co2_eq_emissions" not in metadata_of(render_card(run))
    rewrite(run.summary, co2_eq_emissions={"grams": 12.345, "source": "codecarbon 3.0"})
    card = render_card(run)
    assert metadata_of(card)["co2_eq_emissions"] == {
        "emissions": 12.345,
        "source": "codecarbon 3.0",
        "training_type": "pre-training",
        "hardware_used": "Example CPU",
    }
    assert "12.3 g of CO2" in card


def test_entries_for_a_benchmark_need_its_dataset_and_task(tmp_path: Path) -> None:
    assert eval_results_file(read_card_input(build_run(tmp_path / "without", publish={"dataset": "a/b"}))) is None
    run = build_run(tmp_path / "with", publish={"dataset": "alice/captions", "eval_task_id": "cider"})
    content = yaml.safe_load(eval_results_file(read_card_input(run)) or "")
    cider = json.loads(run.scores("test").read_text())["metrics"]["cider"]
    assert content == [
        {
            "dataset": {"id": "alice/captions", "task_id": "cider"},
            "value": round(100 * cider, 2),
            "notes": "CIDEr-D x100, split test; num_beams 2, max_new_tokens 8, min_new_tokens 0, length_penalty 1.0; "
            "scored with hfcap",
        }
    ]


def test_published_numbers_stand_beside_ours_with_their_source(tmp_path: Path) -> None:
    expect = {"metrics": {"bleu_4": 0.397, "cider": 1.333}, "tolerance": 0.01, "source": "BLIP's <configs>"}
    card = render_card(build_run(tmp_path / "run", expect=expect))
    assert "| BLEU-4 | **31.2** | 29.0 to 33.0 | 0.0 | 0.0 | 39.7 |" in card
    assert "BLIP's &lt;configs&gt;" in card and "falls short in BLEU-4, CIDEr-D" in card


def test_a_model_no_better_than_its_baseline_says_so(run: RunDirectory) -> None:
    assert "WARNING" not in render_card(run)
    scores = json.loads(run.scores("test").read_text())
    rewrite(run.scores("test.blank_images"), metrics={"cider": scores["metrics"]["cider"] + 0.01})
    assert "no better than a baseline that ignores the image (blank images)" in render_card(run)


def test_base_models_datasets_and_lora_are_named(run: RunDirectory) -> None:
    bases = [
        {"id": "google/vit", "revision": "abc", "role": "vision", "local": False},
        {"id": "/srv/nobody/gpt2", "revision": None, "role": "text", "local": True},
    ]
    split = {"n_images": 7, "n_captions": 35, "fingerprint": "ab", "revision": "c0ffee"}
    write_json(run.environment, {**ENVIRONMENT, "base_models": bases, "datasets": {"train": split, "test": split}})
    write_json(run.summary, {**SUMMARY, "method": "lora", "trainable_parameters": 1200})
    card = render_card(run)
    assert " at commit `c0ffee`, read by hfcap's source " in card
    assert metadata_of(card)["base_model"] == "google/vit"
    assert metadata_of(card)["base_model_relation"] == "finetune"
    assert "LoRA: 1,200 of 100,000 parameters were trained (1.2 %)" in card
    assert "/srv/nobody" not in card
    assert any("publish.base_model" in line for line in missing_facts(run))


def test_unknown_facts_are_left_out_and_listed(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", publish={"repo_id": None, "license": None, "dataset_name": None})
    for path in (run.environment, run.summary, run.samples, run.log, run.scores("test")):
        path.unlink()
    card = render_card(run)
    assert check_card(card)[0] == []
    assert "## Evaluation" not in card and "license:" not in card and "model-index" not in card
    for filler in ("More information", "needed", "None", " nan", "TODO", "N/A", "unknown", "[More"):
        assert filler not in card
    listed = "\n".join(missing_facts(run))
    for key in (
        "environment.json",
        "training_summary.json",
        "scores/test.json",
        "samples.json",
        "log.jsonl",
        "publish.license",
    ):
        assert key in listed
    assert "publish.repo_id" in listed and "publish.dataset_name" in listed


def test_a_complete_run_lacks_nothing(run: RunDirectory) -> None:
    assert missing_facts(run) == []


def test_numpy_never_reaches_the_metadata(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcap.card import run_facts

    real = run_facts._scores

    def with_numpy(*arguments: Any) -> dict[str, Any]:
        scores = real(*arguments)
        metrics = {name: np.float32(value).item() * np.float64(1) for name, value in scores["metrics"].items()}
        return {**scores, "metrics": metrics, "n_images": np.int64(6)}

    monkeypatch.setattr(run_facts, "_scores", with_numpy)
    card = render_card(run)
    assert "!!python" not in card and check_card(card)[0] == []


def test_hostile_runs_give_a_valid_and_harmless_card(tmp_path: Path) -> None:
    run = build_run(
        tmp_path / "run",
        captions=HOSTILE,
        publish={"dataset_name": HOSTILE[0] + "\n" + HOSTILE[4], "tags": ["a: b", "</script>"]},
        expect={"metrics": {"cider": 1.0}, "source": HOSTILE[2]},
        data={"test_split": "test | x\n# y"},
    )
    rows = [json.loads(line) for line in run.predictions("test").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["file_name"] = f"{HOSTILE[number % len(HOSTILE)]}`|.jpg"
    run.predictions("test").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.samples, [{**row, "references": [HOSTILE[1]], "score": 0.1} for row in rows])
    rewrite(run.environment, hardware={"cpu": HOSTILE[1], "cores": 2}, versions={"torch": HOSTILE[3]})
    card = render_card(run)
    assert check_card(card)[0] == []
    assert metadata_of(card)["license"] == "apache-2.0"
    parsed = MarkdownIt("commonmark").enable("table").parse(split_front_matter(card)[1])
    inline = [child for token in parsed for child in token.children or []]
    targets = [
        str(token.attrGet("href") or token.attrGet("src")) for token in inline if token.type in ("link_open", "image")
    ]
    assert set(targets) == {"training_curve.png", "verification/ball.png", "https://arxiv.org/abs/2201.12086"}
    html = {token.content.strip() for token in [*parsed, *inline] if token.type in ("html_block", "html_inline")}
    allowed = {MARK, "<!-- -->", "<details><summary>", "</summary>", "</details>"}
    assert not [part for part in html if not set(re.findall(r"<[^>]*>", part)) <= allowed | {"<details>", "<summary>"}]
    headings = [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]
    assert headings[1:] == [
        "Usage", "Evaluation", "Sample captions", "The worst captions", "Training", LIMITS[3:], "Reproduce", "Citation",
    ]  # fmt: skip
    tables = [token for token in parsed if token.type == "table_open"]
    assert len(tables) == 5, "a bar in a caption must not end its cell"
    assert not re.search("[\u202e\x1b\x07]", card)


def test_the_users_own_sections_survive(run: RunDirectory) -> None:
    write_card(run)
    card = run.card.read_text()
    own = card.replace(f"{LIMITS}\n\n{MARK}", f"{LIMITS}\n\nOnly for the club's own images.\n")
    own = own.replace("## Usage", "## Who we are\n\nThe club.\n\n```md\n## Usage\n```\n\n## Usage", 1)
    own = own.replace("pipeline_tag:", "co2_eq_emissions: 12\npipeline_tag:")
    run.card.write_text(own)
    rewrite(run.summary, steps=77)
    write_card(run)
    new = run.card.read_text()
    assert "The club.\n\n```md\n## Usage\n```" in new and "Only for the club's own images." in new
    assert "77 optimiser updates" in new and metadata_of(new)["co2_eq_emissions"] == 12
    assert new.index("## Who we are") < new.index("## Usage\n\n<!--")
    write_card(run)
    assert run.card.read_text() == new


def test_the_snippet_runs_without_hfcap(run: RunDirectory, tmp_path: Path) -> None:
    card = render_card(run)
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace('"alice/tiny"', repr(str(run.model)))
    Image.new("RGB", (50, 40), "green").save(tmp_path / "photo.jpg")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['hfcap'] = None\n" + code],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_the_snippet_sees_the_image_that_hfcap_sees(run: RunDirectory, tmp_path: Path, mode: str) -> None:
    """A sideways photo upright, transparency on white."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8), "RGBA")
    image = noise if mode == "RGBA" else noise.convert("RGB").convert(mode) if mode != "LA" else noise.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "photo.jpg"
    image.save(photo, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    expected = np.asarray(decode_image(FileImage(photo)))
    assert expected.shape == (9, 6, 3)

    code = re.findall(r"```python\n(.*?)```", render_card(run), re.DOTALL)[0]
    imports, opening = code.splitlines()[:1], code.partition("\nimage = ")[2].partition("\ninputs")[0]
    names: dict[str, Any] = {}
    exec("\n".join([*imports, f"image = {opening}"]).replace("photo.jpg", str(photo)), names)
    np.testing.assert_array_equal(np.asarray(names["image"]), expected)

    np.testing.assert_array_equal(np.asarray(plain_decode(FileImage(photo))), expected)
    np.testing.assert_array_equal(np.asarray(open_image(str(photo))), expected)


@pytest.mark.parametrize("family", ["clip_prefix", "vit_gpt2"])
def test_a_prompt_is_part_of_the_snippet(family: str, tmp_path: Path) -> None:
    prompt = 'a "image" of\n```\n'
    run = build_run(tmp_path / "run", family)
    rewrite(run.model / "hfcap.json", prompt=prompt)
    blocks = [token.content for token in MarkdownIt().parse(render_card(run)) if token.info == "python"]
    assert len(blocks) == 1 and '"a \\"image\\" of\\n```"' in blocks[0] and "removeprefix(prompt)" in blocks[0]
    compile(blocks[0], "card", "exec")


def test_damaged_files_are_named(run: RunDirectory) -> None:
    rewrite(run.scores("test"), metrics={"cider": "high"})
    with pytest.raises(UserError, match=r"scores/test\.json: metrics\.cider must be a number or null, not 'high'"):
        render_card(run)
    run.samples.write_text('{"a": 1}')
    rewrite(run.scores("test"), metrics={"cider": 1.0})
    with pytest.raises(
        UserError, match=r"samples\.json: sample captions is damaged \(the whole file: input should be a valid list"
    ):
        render_card(run)


def test_cards_speak_of_beams_only_where_there_are_any(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", "retrieval", generate={"num_beams": 7})
    card = render_card(run)
    assert "captions are looked up, so no decoding settings apply" in card
    assert "beams" not in card and "generate." not in card and "train.learning_rate" not in card


def test_an_ensemble_decodes_by_as_many_beams_as_its_members_use(tmp_path: Path) -> None:
    values = recipe_values("ensemble", generate={"num_beams": 1})
    values["model"]["candidates"] = 6
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text(dump_recipe(recipe_from_mapping(values, "test")))
    write_records(run, CAPTIONS)
    card = render_card(run)
    assert "; 6 beams, at most 8 new tokens" in card and "num_beams: 6" in card

"""What a model needs, on its card and in its proof: from its files, with versions, and nothing that is not named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hfcap.captioners.base import Captioner
from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.card.example_images import RECORD, drawn_images, read_record
from hfcap.card.requirements import (
    CORE,
    brought_by,
    install_command,
    installed_versions,
    needed_packages,
    packages_on_card,
    unmet,
    with_bounds,
)
from hfcap.card.run_facts import read_card_input
from hfcap.errors import UserError, WorkError
from hfcap.publishing.clean_process import Job, run_clean
from hfcap.publishing.published import PublishedModel
from hfcap.publishing.push import publish
from hfcap.publishing.staging import stage_files
from hfcap.publishing.verify import Verification, verify_folder
from hfcap.recipe.blocks import GenerateOptions
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import build
from tests.captioners.itt_models import MODELS, itt
from tests.captioners.itt_more_models import MORE_MODELS, more
from tests.hub_server import Hub
from tests.publishing.run_builder import build_run, write_json

FILMS = ("InternVL", "LlavaOnevision", "Qwen3VL", "Glm4v", "Qwen2VL", "Qwen2_5_VL")
"""Processors that take films as well, which transformers reads with torchvision: none can be saved without it."""
UNNAMED = "matplotlib"
"""A package that is installed here and that neither transformers nor torch brings along."""


# ---- from the files of a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["git", "florence2", "paligemma", "idefics3", "llava", "aya_vision", "mllama"])
def test_processors_of_images_alone_need_nothing_more(name: str, tmp_path: Path) -> None:
    captioner = more(name) if name in MORE_MODELS else itt(name)
    captioner.save_processor(tmp_path)
    assert needed_packages(tmp_path) == list(CORE)


@pytest.mark.parametrize("name", FILMS)
def test_processors_of_films_need_torchvision(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "processor_config.json", {"processor_class": f"{name}Processor"})
    assert needed_packages(tmp_path) == [*CORE, "torchvision"]


@pytest.mark.parametrize(
    ("file", "content", "further"),
    [
        ("config.json", {"model_type": "blip", "vision_config": {"model_type": "blip_vision_model"}}, []),
        ("config.json", {"model_type": "clip_prefix", "vision_config": {"model_type": "timm_wrapper"}}, ["timm"]),
        ("config.json", {"backbone_config": {"model_type": "timm_backbone"}}, ["timm"]),
        ("config.json", {"use_timm_backbone": True}, ["timm"]),
        ("config.json", {"model_type": "gemma3n", "vision_config": {"model_type": "gemma3n_vision"}}, ["timm"]),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, ["accelerate", "bitsandbytes"]),
        ("adapter_config.json", {"base_model_name_or_path": "me/base"}, ["peft"]),
        ("processor_config.json", {"processor_class": "PixtralProcessor"}, ["torchvision"]),
        ("processor_config.json", {"processor_class": "SmolVLMProcessor"}, ["torchvision", "num2words"]),
        ("preprocessor_config.json", {"image_processor_type": "TimmWrapperImageProcessor"}, ["timm"]),
        ("preprocessor_config.json", {"image_processor_type": "DINOv3ViTImageProcessorFast"}, ["torchvision"]),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessorFast"}, []),
        ("processor_config.json", {"image_processor": {"image_processor_type": "CLIPImageProcessorPil"}}, []),
        ("video_preprocessor_config.json", {"video_processor_type": "Qwen2VLVideoProcessor"}, ["torchvision"]),
        ("processor_config.json", {"processor_class": "NobodyKnowsProcessor"}, []),
        ("processor_config.json", {"processor_class": "os.system('x')"}, []),
        ("tokenizer.model", {}, ["sentencepiece"]),
    ],
)
def test_files_say_what_is_needed(file: str, content: Any, further: list[str], tmp_path: Path) -> None:
    write_json(tmp_path / file, content)
    assert needed_packages(tmp_path) == [*CORE, *further]
    # The members of an ensemble lie in folders of their own.
    write_json(tmp_path / "whole" / "member_0" / file, content)
    inside = [] if file == "adapter_config.json" else further
    assert needed_packages(tmp_path / "whole") == [*CORE, *inside]


def test_imports_of_modelling_code_are_named_by_package(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"auto_map": {"AutoModel": "modeling_mine.Mine"}})
    lines = ["import json", "import numpy, torch", "from PIL import Image", "from yaml import safe_load"]
    lines += ["import matplotlib.pyplot", "from . import helper", "import hfcap", "import nobody_has_this"]
    (tmp_path / "modeling_mine.py").write_text("\n".join(lines))
    (tmp_path / "helper.py").write_text("try:\n    import accelerate\nexcept ImportError:\n    pass\nimport pandas\n")
    (tmp_path / "unused.py").write_text("import accelerate\n")
    assert needed_packages(tmp_path) == [*CORE, "matplotlib", "pandas"]


def test_what_packages_bring_along() -> None:
    """Compared with what the installed distributions say of themselves."""
    core = brought_by(CORE)
    assert {"transformers", "torch", "pillow", "numpy", "huggingface-hub", "tokenizers", "jinja2"} <= core
    assert not {"accelerate", "peft", "datasets", "hfcap", UNNAMED} & core
    assert {"accelerate", "torch", "transformers"} <= brought_by(["peft>=0.1"])
    # An extra brings more along; what is not installed brings nothing.
    assert brought_by(["transformers[torch]"]) - brought_by(["transformers"]) >= {"accelerate"}
    assert brought_by(["nobody-has-this"]) == set()


# ---- lines ---------------------------------------------------------------------------------------------------------


def test_lower_bounds_are_versions_that_others_can_install() -> None:
    versions = {"torch": "2.13.0", "transformers": "5.23.1", "timm": "1.0.31", "peft": "1.0.0rc1", "pillow": "13.0.0"}
    assert with_bounds([*versions, "num2words"], versions) == [
        "torch>=2.13",
        "transformers>=5.23.1",
        "timm>=1.0.31",
        "peft>=1.0.0rc1",
        "pillow>=13.0",
        "num2words",
    ]
    here = installed_versions(["torch", "nobody-has-this"])
    assert here == {"torch": Version(metadata.version("torch")).public} and "+" not in here["torch"]


@pytest.mark.parametrize("hostile", ["torch; rm -rf /", "a b", "--index-url=http://x", "x`y", 'x"', "x\ny", "$(x)"])
def test_a_line_holds_only_names_and_bounds(hostile: str) -> None:
    with pytest.raises(UserError, match="no package with a lower bound"):
        install_command(["torch>=2.13", hostile])
    assert hostile not in packages_on_card(f'```sh\npip install torch "{hostile}"\n```\n')


def test_a_card_is_read_as_it_is_written() -> None:
    requirements = ["transformers>=5.23", "torch>=2.13", "num2words"]
    command = install_command(requirements)
    assert command == 'pip install "transformers>=5.23" "torch>=2.13" num2words'
    assert packages_on_card(f"# Title\n\n```sh\n{command}\n```\n\npip install other\n") == requirements
    assert packages_on_card("```sh\npip install transformers torch pillow\n```\n") == list(CORE)  # of earlier hfcap
    assert packages_on_card("no line") == []


def test_requirements_that_are_not_met_here() -> None:
    assert unmet(["torch", "torch>=2.0", f"transformers>={metadata.version('transformers')}"]) == []
    assert unmet(["torch>=99", "nobody-has-this", "peft"]) == ["torch>=99", "nobody-has-this"]


# ---- the proof -----------------------------------------------------------------------------------------------------

LOOKS = f"""
import importlib.metadata, importlib.util
print(importlib.util.find_spec({UNNAMED!r}), {UNNAMED!r} in {{d.name for d in importlib.metadata.distributions()}})
"""


def test_the_clean_process_finds_only_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "brought_along.py").write_text("value = 7\n")
    job = Job("import transformers, torch, PIL, numpy, huggingface_hub", LOOKS, [tmp_path / "photo.jpg"])
    jobs = {
        "looks": job,
        "imports": Job(f"import {UNNAMED}", "", []),
        "asks": Job("from transformers.utils import requires_backends as r; r(object(), ['pandas'])", "", []),
        "says": Job("raise ImportError('X requires the scikit-learn library: pip install evaluate')", "", []),
        "fails": Job("raise ValueError('something else')", "", []),
        "own": Job(f"import sys; sys.path.insert(0, {str(tmp_path / 'brought')!r}); import brought_along", "", []),
        "hfcap": Job("import hfcap", "", []),
    }
    results = run_clean(jobs, packages=CORE)
    assert (results["looks"].captions, results["looks"].error) == (["None False"], None)
    assert results["imports"].unnamed == (UNNAMED,) and UNNAMED in str(results["imports"].error)
    assert results["asks"].unnamed == ("pandas",)
    assert results["says"].unnamed == ("evaluate",)
    assert results["fails"].unnamed == () and "something else" in str(results["fails"].error)
    assert results["own"].error is None
    assert results["hfcap"].error is not None


def qwen_with_films() -> ImageTextToText:
    """A tiny Qwen2.5-VL with the whole processor, as its repositories have it."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    model, processor = MODELS["qwen2_5_vl"]()
    parts = (processor.image_processor, processor.tokenizer, Qwen2VLVideoProcessor())
    whole = Qwen2_5_VLProcessor(*parts, chat_template=processor.chat_template)
    return ImageTextToText(model, whole, "what is on it?", image_size=84)


def with_timm() -> Captioner:
    """A captioner whose encoder is one of timm."""
    return build("show_attend_tell", vision_config={"model_type": "timm_wrapper", "architecture": "test_efficientnet"})


@pytest.mark.parametrize(
    ("package", "make"), [("torchvision", qwen_with_films), ("timm", with_timm)], ids=["torchvision", "timm"]
)
def test_models_that_need_more_caption_with_exactly_what_is_named(
    package: str, make: Callable[[], Captioner], tmp_path: Path
) -> None:
    pytest.importorskip(package)
    make().save(tmp_path / "model", GenerateOptions(num_beams=1, max_new_tokens=3))
    packages = needed_packages(tmp_path / "model")
    assert packages == [*CORE, package]
    (tmp_path / "ball.png").write_bytes(drawn_images()["ball.png"])
    code = PublishedModel(tmp_path / "model", [], str(tmp_path / "model"), None, closed=False).code()
    job = {"job": Job(*code, [tmp_path / "ball.png"])}
    assert run_clean(job, packages=packages)["job"].error is None
    assert run_clean(job, packages=CORE)["job"].unnamed == (package,)


@pytest.fixture(scope="module")
def needy(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose modelling code imports a package in a way that nobody can read off it."""
    run = build_run(tmp_path_factory.mktemp("needy") / "needy", "clip_prefix")
    code = run.model / "modeling_clip_prefix.py"
    hidden = f"__import__('importlib').import_module({UNNAMED[::-1]!r}[::-1])"
    code.write_text(code.read_text().replace("from torch import nn\n", f"from torch import nn\n\n{hidden}\n", 1))
    assert UNNAMED[::-1] in code.read_text()
    return run


def test_a_package_that_the_card_leaves_out_fails_the_proof_and_completes_the_card(
    hub: Hub, needy: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Verification] = []

    def noting(folder: Path, *arguments: Any) -> Verification:
        reports.append(verify_folder(folder, *arguments))
        return reports[-1]

    monkeypatch.setattr("hfcap.publishing.push.verify_folder", noting)
    result = publish(needy, "alice/needy", trust_remote_code=True)
    failed, passed = reports
    assert failed.unnamed == (UNNAMED,)
    (failure,) = failed.failures
    assert failure.name == "loads without hfcap" and f"does not name what this needs: {UNNAMED}" in failure.found
    assert passed.failures == [] and passed.unnamed == ()
    (packages,) = [check for check in passed.checks if check.name == "packages"]
    assert packages.outcome == "passed" and packages.found.startswith("only transformers>=")
    assert result.comparisons and all(comparison.agrees for comparison in result.comparisons)
    card = hub.store.repository("alice/needy").content("main", "README.md").decode()
    assert packages_on_card(card)[-1:] == with_bounds([UNNAMED], installed_versions([UNNAMED]))
    assert read_record(needy.path)["also_needed"] == [UNNAMED]


def test_versions_on_the_card_are_those_of_the_proof(run: RunDirectory) -> None:
    folder = stage_files(run)
    here = installed_versions(CORE)
    assert packages_on_card((folder / "README.md").read_text()) == with_bounds(CORE, here)
    # Proven elsewhere before: the bounds follow where it is proven now.
    record = read_record(run.path)
    write_json(run.path / RECORD, record | {"versions": dict.fromkeys(CORE, "1.0.0")})
    assert read_card_input(run).requirements == [f"{name}>=1.0" for name in CORE]
    stage_files(run)
    assert read_card_input(run).requirements == with_bounds(CORE, here)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('pip install transformers "torch>=99" pillow', "the card asks for torch>=99, which is not here"),
        ("pip install transformers torch pillow nobody-has-this", "the card asks for nobody-has-this"),
        ("pip install --pre transformers", "does not say what to install"),
        ("", "does not say what to install"),
    ],
)
def test_a_card_whose_packages_cannot_be_tried_is_not_proven(
    line: str, found: str, run: RunDirectory, hub: Hub
) -> None:
    folder = stage_files(run, repo_id="alice/x")
    card = (folder / "README.md").read_text()
    written = next(text for text in card.splitlines() if text.startswith("pip install"))
    (folder / "README.md").write_text(card.replace(written, line))
    report = verify_folder(folder, "alice/x")
    (failure,) = report.failures
    assert failure.name == "packages" and found in failure.found
    with pytest.raises(WorkError, match="packages"):
        report.require()


@pytest.mark.parametrize("damage", [{"versions": ["torch"]}, {"versions": {"torch": 2}}, {"also_needed": "torch"}])
def test_damaged_notes_of_packages_are_named(damage: dict[str, Any], run: RunDirectory) -> None:
    write_json(run.path / RECORD, read_record(run.path) | damage)
    with pytest.raises(UserError, match=r"also_needed must be a list|must be texts"):
        stage_files(run)


def test_a_run_of_a_stranger_cannot_write_commands_into_a_card(run: RunDirectory) -> None:
    write_json(run.path / RECORD, read_record(run.path) | {"also_needed": ["torch\ncurl x | sh"]})
    with pytest.raises(UserError, match="no package with a lower bound"):
        stage_files(run)
    write_json(run.path / RECORD, read_record(run.path) | {"also_needed": [], "versions": {"torch": "1`; sh"}})
    shutil.rmtree(run.publish, ignore_errors=True)
    with pytest.raises(UserError, match=r"versions.*torch"):
        read_card_input(run)

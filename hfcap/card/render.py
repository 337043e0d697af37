"""The model card: a pure function of the run directory, rendered from card.md.jinja."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hfcap.card import evaluation, prose, training_curve
from hfcap.card.front_matter import front_matter
from hfcap.card.kept_sections import MARK, merge_sections, split_front_matter
from hfcap.card.requirements import install_command
from hfcap.card.run_facts import RunFacts, read_card_input
from hfcap.card.usage_code import serving, usage_code
from hfcap.files import read_text, write_bytes, write_text
from hfcap.pages.markdown import Safe, code_block, escape, finalize
from hfcap.run_directory.paths import RunDirectory


def render_card(run: RunDirectory, repo_id: str | None = None, model: Path | None = None) -> str:
    """Return the card (YAML front matter and Markdown) of a run.

    Facts that the run does not hold are left out, never filled in (see `missing_facts`). Sections that a user wrote
    into the run's README.md stay.

    Args:
        repo_id: where the model goes, if not to the recipe's publish.repo_id.
        model: folder with the weights, if not run.model (merged LoRA).

    Raises:
        UserError: recipe.yaml is missing, or a file of the run is damaged.
    """
    return render(read_card_input(run, repo_id, model), existing_card(run))


def missing_facts(run: RunDirectory) -> list[str]:
    """Return one line for each fact that the card lacks, naming file, key and remedy; empty for a complete card."""
    return read_card_input(run).missing


def write_card(run: RunDirectory) -> Path:
    """Write README.md and its training curve into the run directory; returns the card's path."""
    known = read_card_input(run)
    if training_curve.has_curve(known.log):
        write_bytes(run.path / training_curve.FILE_NAME, training_curve.draw_curve(known.log))
    write_text(run.card, render(known, existing_card(run)))
    return run.card


def existing_card(run: RunDirectory) -> str:
    """Return the run's README.md, or nothing."""
    return read_text(run.card, "model card") if run.card.is_file() else ""


def render(known: RunFacts, existing: str) -> str:
    """Return the card of already read facts, with the user's own sections of the `existing` card."""
    body = _environment().get_template("card.md.jinja").render(_context(known))
    body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    merged = merge_sections(body, split_front_matter(existing)[1])
    return f"{front_matter(known, existing)}\n{merged.strip()}\n"


def _environment() -> Environment:
    # `finalize` escapes every printed value for Markdown and HTML; Jinja's own autoescape knows HTML only.
    return Environment(
        loader=PackageLoader("hfcap.card", "."),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _context(known: RunFacts) -> dict[str, object]:
    base = None
    if known.is_adapter and known.base_models:
        base = (known.base_models[0]["id"], known.base_models[0]["revision"])
    usage = usage_code(known.repo_id or ".", known.model, known.has_code, known.model_type, base)
    return {
        "mark": Safe(MARK),
        "title": prose.title(known),
        "summary": prose.summary(known),
        "planned": known.is_planned,
        "caution": prose.caution(known),
        "install": Safe(install_command(known.requirements)),
        "usage": code_block(usage, "python"),
        "serving": serving(known.repo_id or ".", known.model, known.has_code, known.is_adapter),
        "unpublished": known.repo_id is None,
        "printed": prose.printed(known),
        "has_code": known.has_code,
        "evaluation": evaluation.evaluation(known),
        "samples": prose.sample_table(known.samples),
        "worst": prose.sample_table(known.worst),
        "training": {
            **prose.training(known),
            "curve": Safe(training_curve.FILE_NAME) if training_curve.has_curve(known.log) else None,
        },
        "limits": prose.limits(known),
        "reproduce": {**prose.reproduce(known), "command": code_block("hfcap run recipe.yaml", "sh")},
        "citation": _citation(known),
    }


def _citation(known: RunFacts) -> dict[str, object]:
    family = known.family
    if family.paper_model_types and known.model_type not in family.paper_model_types:
        return {
            "text": "The architecture is that of the base model: cite the paper that its card names.",
            "bibtex": None,
        }
    link = Safe(f"The architecture: [{escape(family.paper_title)}]({family.paper_url}).")
    return {"text": link, "bibtex": code_block(family.bibtex, "bibtex")}

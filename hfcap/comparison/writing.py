"""The files of a leaderboard: Markdown, JSON, a page, and the plots."""

from __future__ import annotations

import shutil
from pathlib import Path

from hfcap.comparison.by_image import by_image, images_to_show
from hfcap.comparison.examples import ImageSource, gather_evidence
from hfcap.comparison.languages import language_json, language_markdown, language_page
from hfcap.comparison.listing import choose_listing
from hfcap.comparison.page import leaderboard_page
from hfcap.comparison.plots import draw_plots
from hfcap.comparison.rendering import N_EXAMPLES, leaderboard_json, leaderboard_markdown
from hfcap.comparison.result import Comparison, LanguageComparison
from hfcap.comparison.slices import slice_examples
from hfcap.files import folder_being_written, write_json, write_text

PLOTS_FOLDER = "leaderboard_plots"


def write_leaderboard(
    comparison: Comparison,
    folder: Path,
    *,
    references: Path | None = None,
    images: ImageSource | None = None,
    n_examples: int = N_EXAMPLES,
) -> None:
    """Write leaderboard.md, .json and .html into `folder`, and the page's plots into its folder `leaderboard_plots`.

    Args:
        references: file of the human captions that were scored against; without it those of the run directories.
        images: where the images of the shown images are; None = show none. Small copies go into the page.
        n_examples: so many of the largest wins and losses of each pair are on the page.

    Raises:
        UserError: a file of captions is malformed, or images were asked for and cannot be found.
    """
    pairs = by_image(comparison)
    listing = choose_listing(comparison)
    parts = slice_examples(comparison, n_examples)
    extremes = [*images_to_show(pairs, n_examples), *(image_id for part in parts for image_id in part.image_ids)]
    extremes += [image_id for one in comparison.found_slices for image_id in one.image_ids_of_examples(n_examples)]
    listed, shown = ((), ()) if listing is None else (listing.image_ids, listing.shown)
    known = list(dict.fromkeys([*extremes, *listed]))
    pictured = list(dict.fromkeys([*extremes, *shown]))
    evidence = gather_evidence(comparison, known, references=references, images=images, shown=pictured)
    plots = draw_plots(comparison, pairs)
    page = leaderboard_page(comparison, pairs, plots, evidence, n_examples, listing, parts)
    write_text(folder / "leaderboard.md", leaderboard_markdown(comparison))
    write_json(folder / "leaderboard.json", leaderboard_json(comparison))
    if plots:
        with folder_being_written(folder / PLOTS_FOLDER) as place:
            for plot in plots:
                (place / plot.file_name).write_text(plot.svg, encoding="utf-8")
    else:
        _remove_plots(folder)
    write_text(folder / "leaderboard.html", page)


def write_language_table(found: LanguageComparison, folder: Path) -> None:
    """Write leaderboard.md, .json and .html of systems in several languages into `folder`."""
    write_text(folder / "leaderboard.md", language_markdown(found))
    write_json(folder / "leaderboard.json", language_json(found))
    _remove_plots(folder)
    write_text(folder / "leaderboard.html", language_page(found))


def _remove_plots(folder: Path) -> None:
    """Remove the plots of an earlier comparison."""
    if (folder / PLOTS_FOLDER).is_dir():
        shutil.rmtree(folder / PLOTS_FOLDER)

"""A judge's ranking on screen and in files."""

from __future__ import annotations

from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from hfcap.arena.ranking import RankedSystem, Ranking, facts, sentences
from hfcap.files import write_json, write_text
from hfcap.scoring.signature import flattened
from hfcap.text import printable


def _difference(system: RankedSystem) -> str:
    if system.to_best is None:
        return ""
    difference, bounds = system.to_best
    return f"{difference:+.0f} ({bounds[0]:+.0f} to {bounds[1]:+.0f})"


def _cells(system: RankedSystem) -> list[str]:
    interval = f"{system.interval[0]:.0f} to {system.interval[1]:.0f}"
    counts = [f"{count:,}" for count in (system.wins, system.ties, system.losses)]
    return [f"{system.rating:.0f}", interval, _difference(system), *counts]


def _columns(ranking: Ranking) -> list[str]:
    return ["rating", f"{ranking.settings['confidence_level']:.0%}", "to the best", "wins", "ties", "losses"]


def ranking_table(ranking: Ranking) -> Table:
    """Return a table with one row per system, best first."""
    title = Text(f"Ranked by a judge on {ranking.n_images:,} images (Bradley-Terry, mean 1000)")
    table = Table("", *(Column(name, justify="right") for name in _columns(ranking)), title=title)
    for system in ranking.systems:
        table.add_row(Text(printable(system.name)), *_cells(system))
    return table


def conditions_line(ranking: Ranking) -> str:
    """Return the judge and what it was asked, on one line."""
    return "|".join(f"{key}:{value}" for key, value in flattened(ranking.signature))


def ranking_markdown(ranking: Ranking) -> str:
    """Return the ranking as a page of Markdown."""
    heads = ["system", *_columns(ranking)]
    lines = [
        f"# Ranked by a judge on {ranking.n_images:,} images",
        "",
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) - 1)}",
    ]
    for system in ranking.systems:
        name = printable(system.name).replace("|", "\\|").replace("`", "'")
        lines.append(f"| `{name}` | {' | '.join(_cells(system))} |")
    lines += ["", *(f"- {line}" for line in sentences(ranking)), "", f"    {printable(conditions_line(ranking))}", ""]
    return "\n".join(lines)


def write_ranking(ranking: Ranking, folder: Path) -> None:
    """Write ranking.json and ranking.md into a folder."""
    write_json(folder / "ranking.json", facts(ranking))
    write_text(folder / "ranking.md", ranking_markdown(ranking))

"""How a real browser shows the leaderboard's page, at a telephone's width, and what its script does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hfcap.comparison import ImageSource
from hfcap.files import read_json
from hfcap.scoring import read_scores
from tests.comparison.pages import HOSTILE, Scored, in_browser, written

_MEASURE = """
const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
const plots = [...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect());
const first = name => document.querySelector(`table.${name} tbody td`).getBoundingClientRect();
found = {title: document.title, width: innerWidth, scroll: document.documentElement.scrollWidth, wide,
  height: document.documentElement.scrollHeight, paper: getComputedStyle(document.body).backgroundColor,
  text: getComputedStyle(document.querySelector('svg.plot text')).fill, plots: plots.map(p => [p.width, p.height]),
  images: [...document.images].map(i => i.naturalWidth),
  heading: document.querySelector('table.scores thead th:nth-child(2)').textContent.trim(),
  main: ['scores', 'differences'].map(name => [first(name).left, first(name).right])};
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_telephone_shows_the_main_value_and_no_endless_page(whole_run: Scored, tmp_path: Path, dark: bool) -> None:
    """The main value was off the screen, and the page up to 133,000 pixels high."""
    runs = [whole_run("a", 0.0), whole_run("a_rather_long_name_without_any_space_in_it_" * 2, 0.5)]
    value = read_json(runs[1] / "scores" / "test.json", "scores")
    value["signature"]["run"] = {"prompt": HOSTILE}
    (runs[1] / "scores" / "test.json").write_text(json.dumps(value))
    page = written(runs, tmp_path / "out", images=ImageSource(), n_examples=100)
    found = in_browser(page, _MEASURE, tmp_path, dark=dark, policy=False)
    assert found["title"] == "Captioners compared"
    assert found["width"] == 390 and found["scroll"] <= 390 and found["wide"] == []
    assert found["heading"].startswith("CIDEr-D")
    assert all(0 <= left < right <= 390 for left, right in found["main"]), found["main"]
    assert found["height"] < 25_000, found["height"]
    assert all(width > 200 and height > 50 for width, height in found["plots"]) and found["plots"]
    assert found["images"] and all(width > 0 for width in found["images"])
    expected = ("rgb(21, 24, 27)", "rgb(163, 172, 182)") if dark else ("rgb(255, 255, 255)", "rgb(95, 104, 117)")
    assert found["paper"] == expected[0]
    assert found["text"] in (expected[1], "rgb(232, 234, 237)" if dark else "rgb(28, 32, 36)")


_USE = """
const section = document.getElementById('images');
const control = name => section.querySelector(`[name=${name}]`);
const listed = () => [...section.querySelectorAll('.examples > li')].map(item => ({
  name: item.querySelector('small').textContent, text: item.innerText,
  captions: [...item.querySelectorAll('.caption')].map(e => e.textContent),
  values: [...item.querySelectorAll('p > small')].map(e => e.textContent),
  ahead: item.querySelector('.win, .loss, .tie')?.textContent,
  outcome: item.querySelector('.win, .loss, .tie')?.className,
  image: item.querySelector('img')?.naturalWidth ?? null}));
const count = () => section.querySelector('.count').textContent;
const set = (name, value) => { control(name).value = value; control(name).dispatchEvent(new Event('input')); };
const click = name => control(name).click();
const snapshot = () => ({rows: listed(), count: count()});
"""


def _used(page: str, steps: str, folder: Path) -> Any:
    return in_browser(page, _USE + steps, folder)


def test_images_can_be_searched_sorted_filtered_and_sampled(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run("a", 0.0), whole_run("b", 0.5)]
    page = written(runs, tmp_path / "out", images=ImageSource())
    found = _used(
        page,
        """
        found = {visible: !section.hidden, first: snapshot()};
        click('on'); found.second = snapshot();
        click('sample'); found.sample = snapshot();
        set('order', 'value:1|up'); found.lowest = snapshot();
        set('order', 'ahead:against|down'); found.wins = snapshot();
        set('outcome', 'lost'); found.lost = snapshot();
        set('outcome', 'tie'); found.tie = snapshot();
        set('outcome', 'all'); set('search', '  GRASS grass '); found.searched = snapshot();
        set('search', 'nothing like that'); found.nothing = snapshot();
        set('search', ''); set('order', 'name'); found.named = snapshot();
        """,
        tmp_path,
    )
    good, bad = (read_scores(run / "scores" / "test.json").per_image for run in runs)
    names = {f"{key}.png": key for key in good}
    assert found["visible"] and found["first"]["count"] == "1 to 20 of 130" and len(found["first"]["rows"]) == 20
    assert found["second"]["count"] == "21 to 40 of 130"
    seen = [{row["name"] for row in found[step]["rows"]} for step in ("first", "second", "sample")]
    assert not seen[0] & seen[1] and seen[2] not in seen[:2] and set.union(*seen) <= set(names)
    for row in found["first"]["rows"]:
        key = names[row["name"]]
        assert row["values"] == [f"{100 * (scores[key]['cider'] or 0):.1f}" for scores in (good, bad)]
        assert len(row["captions"]) == 2 and "People wrote:" in row["text"]
    assert any(row["image"] for row in found["first"]["rows"])
    lowest = [float(row["values"][1]) for row in found["lowest"]["rows"]]
    assert lowest == sorted(f for f in lowest) and lowest[0] == min(100 * (row["cider"] or 0) for row in bad.values())
    differences = {key: 100 * ((good[key]["cider"] or 0) - (bad[key]["cider"] or 0)) for key in good}
    largest = sorted(differences.values(), reverse=True)[:20]
    assert [float(row["ahead"]) for row in found["wins"]["rows"]] == pytest.approx(largest, abs=0.006)
    lost = sum(value < -0.005 for value in differences.values())
    tied = sum(abs(value) < 0.005 for value in differences.values())
    for step, outcome, number in (("lost", "loss", lost), ("tie", "tie", tied)):
        assert {row["outcome"] for row in found[step]["rows"]} <= {outcome}
        expected = "no image" if number == 0 else f"1 to {min(20, number)} of {number}"
        assert found[step]["count"] == expected
    assert all("grass grass" in row["captions"] for row in found["searched"]["rows"]) and found["searched"]["rows"]
    assert found["nothing"] == {"rows": [], "count": "no image"}
    first_names = sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])[:20]
    assert [row["name"] for row in found["named"]["rows"]] == first_names


def test_tables_are_sorted_by_a_click(whole_run: Scored, tmp_path: Path) -> None:
    page = written([whole_run("a", 0.3), whole_run("b", 0.0), whole_run("c", 0.6)], tmp_path / "out")
    found = in_browser(
        page,
        """
        const table = document.querySelector('table.scores');
        const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].innerText.trim().split(/\\s+/)[1]);
        const values = () => [...table.tBodies[0].rows].map(row => Number.parseFloat(row.cells[2].textContent));
        found = [order()];
        for (const column of [3, 3, 1, 1]) {
          table.tHead.querySelector(`th:nth-child(${column}) button`).click();
          found.push([order(), values()]);
        }
        """,
        tmp_path,
    )
    # The last row is quoted, not measured: it has no ROUGE-L.
    assert found[0][:3] == ["b", "a", "c"]
    assert found[1][0][:3] == ["b", "a", "c"] and found[1][1][:3] == sorted(found[1][1][:3], reverse=True)
    assert found[2][0][-3:] == ["c", "a", "b"]
    assert sorted(found[3][0]) == sorted(found[0]) and found[4][0] == found[3][0][::-1]


def test_one_run_is_shown_with_its_images(whole_run: Scored, tmp_path: Path) -> None:
    """Without a second run there was neither image nor caption on the page."""
    page = written([whole_run("a", 0.3)], tmp_path / "out", images=ImageSource())
    found = _used(page, "set('order', 'value:0|up'); found = snapshot();", tmp_path)
    rows = found["rows"]
    assert len(rows) == 20 and all(len(row["captions"]) == 1 and "outcome" not in row for row in rows)
    assert any(row["captions"] == ["grass grass"] for row in rows)
    later = _used(page, "set('search', 'a'); found = snapshot();", tmp_path)
    assert any(row["image"] for row in later["rows"])


def test_what_strangers_wrote_is_text_and_runs_nothing(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run("a", 0.0), whole_run("b", 0.5)]
    hostile = HOSTILE + "</script><script>document.title='owned'</script><!--<script>"
    for run in runs:
        path = run / "predictions" / "test.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"file_name": hostile}) + "\n" for row in rows))
        (run / "references" / "test.json").unlink()
    page = written(runs, tmp_path / "out")
    ask = "found = {...snapshot(), title: document.title, tags: [...section.querySelectorAll('b, img')].length};"
    for policy in (True, False):  # nothing of theirs may become a script in the first place
        found = in_browser(page, _USE + ask, tmp_path, policy=policy)
        assert found["title"] == "Captioners compared" and found["tags"] == 0
        assert found["rows"][0]["name"] == hostile

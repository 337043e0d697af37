"""`hfcap watch`: a page that follows a training, and lets a person stop it in an orderly way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.files import write_text
from hfcap.pages.local_server import Answer, json_answer, page_answer
from hfcap.run.curves import described, plots
from hfcap.run.status import RunStatus, run_status
from hfcap.run_directory.paths import RunDirectory


class LivePage:
    """Answers the browser's requests about one run.

    Raises:
        UserError: this is no run directory.
    """

    def __init__(self, path: Path) -> None:
        run_status(path)
        self.path = path
        self._drawing = threading.Lock()  # matplotlib's settings are those of the process

    def get(self, path: str) -> Answer | None:
        """Return the page, or how far the run is as JSON."""
        if path == "":
            title = f"Training of {self.path.resolve().name}"
            return page_answer("run/live.html.jinja", "run/live.js", title=title)
        return json_answer(self._state()) if path == "state" else None

    def _state(self) -> dict[str, Any]:
        status = run_status(self.path)
        with self._drawing:
            drawn = plots([status])
        return {
            **described(status),
            "plots": drawn,
            "step": status.step,
            "total": status.total,
            "can_stop": _can_stop(status),
        }

    def post(self, path: str, value: Mapping[str, Any]) -> Answer | None:
        """Ask the training to stop after its next update."""
        if path != "stop":
            return None
        if not _can_stop(run_status(self.path)):
            raise UserError(f"{self.path}: no training is going on in this run; start one with hfcap run")
        write_text(RunDirectory(self.path).stop_request, "hfcap stops the training after this update\n")
        return json_answer({})


def _can_stop(status: RunStatus) -> bool:
    return status.works and status.next_stage == "train"

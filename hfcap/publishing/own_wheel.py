"""hfcap as a wheel, put together from the files that are running: no package index has it for Spaces to install."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import zipfile
from importlib import metadata
from pathlib import Path

import hfcap
from hfcap.errors import UserError

WHEEL_NAME = f"hfcap-{hfcap.__version__}-py3-none-any.whl"

_DESCRIPTION = "Wheel-Version: 1.0\nGenerator: hfcap\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_KEPT = ("METADATA", "entry_points.txt", "licenses/LICENSE")
"""Files about the installed package that its wheel had; the others say how and where it was installed."""


def installed() -> metadata.Distribution:
    """Return what is known about the installed hfcap.

    Raises:
        UserError: it was never installed, or before its version changed.
    """
    # A build leaves an egg-info next to the source, which knows less and may be older.
    found = [one for one in metadata.distributions(name="hfcap") if one.read_text("METADATA")]
    for one in found:
        if one.version == hfcap.__version__:
            return one
    known = f"is installed as {found[0].version}" if found else "is not installed"
    raise UserError(
        f"hfcap {hfcap.__version__} {known}, so its dependencies are not known; run pip install -e . in the folder of "
        "its source"
    )


def wheel_content() -> bytes:
    """Return hfcap's wheel, the same bytes for the same files.

    Its members are not compressed, so that a search for secrets sees them.

    Raises:
        UserError: see `installed`.
    """
    about = f"hfcap-{hfcap.__version__}.dist-info"
    texts = {name: installed().read_text(name) for name in _KEPT}
    members = _files_of(Path(hfcap.__file__).parent)
    members |= {f"{about}/{name}": text.encode() for name, text in texts.items() if text is not None}
    members[f"{about}/WHEEL"] = _DESCRIPTION.encode()
    members[f"{about}/RECORD"] = _record(members, f"{about}/RECORD")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            entry = zipfile.ZipInfo(name)  # dated 1980, whenever it is written
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, value)
    return content.getvalue()


def _files_of(package: Path) -> dict[str, bytes]:
    """Return the files of the package by their names in a wheel; links are followed: recipes/ is one in a checkout."""
    found = {}
    for folder, folders, names in os.walk(package, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(folder) / name for name in sorted(names)):
            found[path.relative_to(package.parent).as_posix()] = path.read_bytes()
    return found


def _record(members: dict[str, bytes], itself: str) -> bytes:
    """Return the list of members with their hashes, as the wheel format asks."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, value in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(value).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(value)])
    rows.writerow([itself, "", ""])
    return text.getvalue().encode()

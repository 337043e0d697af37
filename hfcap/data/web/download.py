"""Fetching COCO: resumable downloads, verified archives, safe extraction."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfcap.data.images import resolve_inside
from hfcap.errors import UserError, WorkError
from hfcap.files import write_json
from hfcap.progress import error_console, progress_bar

IMAGES_URL = "http://images.cocodataset.org/zips"
"""The official address; its https has no valid certificate, so the checksums below vouch for the content."""
SPLIT_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent"

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_FRUITLESS_ATTEMPTS = 6
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_NETWORK_ERRORS = (OSError, http.client.HTTPException)
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Archive:
    """One zip file and what is wanted from it.

    Attributes:
        member_prefix: only members whose name starts so are extracted, under their own names.
        n_files: number of wanted members; extraction is complete when so many are there.
        expansion: upper estimate of extracted size by archive size; far more is refused as a zip bomb.
        md5: as published by those who mirrored the archive, or None.
    """

    url: str
    member_prefix: str
    n_files: int
    expansion: float = 1.05
    md5: str | None = None

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


def coco_archives(
    year: Literal["2014", "2017"] = "2014", images_url: str = IMAGES_URL, split_url: str = SPLIT_URL
) -> tuple[Archive, ...]:
    """Return the Karpathy split and the two photo archives of a COCO release (both hold the same 123,287 photos)."""
    split = Archive(f"{split_url}/caption_datasets.zip", "dataset_coco.json", 1, expansion=8)
    if year == "2014":
        return (
            split,
            Archive(f"{images_url}/val2014.zip", "val2014/", 40504, md5="a3d79f5ed8d289b7a7554ce06a5782b3"),
            Archive(f"{images_url}/train2014.zip", "train2014/", 82783, md5="0da8c0bd3d6becc4dcb32757491aca88"),
        )
    return (
        split,
        Archive(f"{images_url}/val2017.zip", "val2017/", 5000, md5="442b8da7639aecaf257c1dceb8ba8c80"),
        Archive(f"{images_url}/train2017.zip", "train2017/", 118287, md5="cced6f7f71b7629ddf16f17bbcfab6b2"),
    )


def download_coco(
    root: Path,
    year: Literal["2014", "2017"] = "2014",
    *,
    archives: Sequence[Archive] | None = None,
    keep_archives: bool = False,
    pause: float = 2.0,
) -> None:
    """Fetch COCO's photos and the Karpathy split into `root`, in the layout that source coco reads.

    What is there already is left alone; a stopped download goes on where it ended. Archives lie in `root/downloads`
    and are deleted after extraction.

    Args:
        archives: others than `coco_archives(year)`, e.g. from a mirror.
        pause: seconds before the first repetition after a network error; doubles each time.

    Raises:
        UserError: the disk is too small (checked before the first byte) or `root` cannot be written.
        WorkError: the server refuses, keeps failing, or delivers damaged archives.
    """
    root = root.expanduser()
    try:
        (root / "downloads").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); choose another --root") from None
    wanted = coco_archives(year) if archives is None else archives
    pending = [archive for archive in wanted if not _is_extracted(root, archive)]
    for archive in wanted:
        if archive not in pending:
            error_console.print(f"{archive.name}: already extracted in {root}", markup=False)
    try:
        remotes = {archive: _ask(archive, root, pause) for archive in pending}
        _require_space(root, remotes)
        for archive in pending:
            path = _fetch(archive, remotes[archive], root / "downloads", pause)
            _extract(archive, path, root)
            if not keep_archives:
                path.unlink()
    except OSError as error:
        raise WorkError(f"{root}: {error.strerror or error}; correct that and run again to go on") from error
    with contextlib.suppress(OSError):
        (root / "downloads").rmdir()


def _is_extracted(root: Path, archive: Archive) -> bool:
    target = root / archive.member_prefix
    if not archive.member_prefix.endswith("/"):
        return target.is_file()
    return target.is_dir() and sum(path.suffix != ".part" for path in target.iterdir()) >= archive.n_files


@dataclass(frozen=True)
class _Remote:
    """What the server says about a file: bytes (None: unknown) and what changes when the content does."""

    size: int | None
    validator: str | None


def _ask(archive: Archive, root: Path, pause: float) -> _Remote:
    complete = root / "downloads" / archive.name
    if complete.is_file():
        return _Remote(complete.stat().st_size, None)
    with contextlib.closing(_open(urllib.request.Request(archive.url, method="HEAD"), pause)) as response:
        return _remote_of(response.headers)


def _remote_of(headers: Any) -> _Remote:
    length = headers.get("Content-Length", "")
    etag = headers.get("ETag")
    # A weak ETag promises equal meaning, not equal bytes, and If-Range must not carry one.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return _Remote(int(length) if length.isdigit() else None, validator)


def _open(request: urllib.request.Request, pause: float) -> Any:
    """Open a URL; network errors and overloaded servers are tried again."""
    if not request.full_url.startswith(("http://", "https://")):
        raise UserError(f"{request.full_url}: only http and https are fetched; download it yourself, and give the file")
    for attempt in range(_FRUITLESS_ATTEMPTS):
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error
            if error.code not in _RETRIED_STATUS:
                raise WorkError(
                    f"{request.full_url}: the server answers {error.code} {error.reason}. If the file has moved, put "
                    "it by hand into the folder downloads inside --root and run again"
                ) from None
            reason = f"{error.code} {error.reason}"
        except _NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < _FRUITLESS_ATTEMPTS:
            time.sleep(pause * 2**attempt)
    raise WorkError(f"{request.full_url}: no answer after {_FRUITLESS_ATTEMPTS} attempts ({reason}); run again later")


def _require_space(root: Path, remotes: dict[Archive, _Remote]) -> None:
    """Check the peak: archives are fetched and extracted one after the other, each deleted before the next."""
    extracted, peak = 0.0, 0.0
    for archive, remote in remotes.items():
        size = remote.size or 0
        part = root / "downloads" / f"{archive.name}.part"
        complete = root / "downloads" / archive.name
        there = sum(path.stat().st_size for path in (part, complete) if path.is_file())
        peak = max(peak, extracted + max(0, size - there) + size * archive.expansion)
        extracted += size * archive.expansion
    free = shutil.disk_usage(root).free
    if peak > free:
        raise UserError(
            f"{root}: needs {peak / 1e9:.1f} GB of free disk ({extracted / 1e9:.1f} GB stay, the rest is the archive "
            f"being extracted), but only {free / 1e9:.1f} GB are free; free some or choose another --root"
        )


def _fetch(archive: Archive, remote: _Remote, folder: Path, pause: float) -> Path:
    """Download one archive and verify its size and checksum."""
    complete, part = folder / archive.name, folder / f"{archive.name}.part"
    if not complete.is_file():
        fruitless = 0
        with progress_bar() as progress:
            task = progress.add_task(f"{archive.name} (MB)", total=remote.size and remote.size / 1e6)
            before = _size_of(part)
            while not _receive(archive, part, pause, lambda done: progress.update(task, completed=done / 1e6)):
                after = _size_of(part)
                fruitless = 0 if after > before else fruitless + 1
                before = after
                if fruitless >= _FRUITLESS_ATTEMPTS:
                    raise WorkError(f"{archive.url}: the connection keeps breaking; run again to go on where it ended")
                time.sleep(pause * 2**fruitless)
        part.replace(complete)
        _state_path(part).unlink(missing_ok=True)
    if archive.md5 is not None and _md5_of(complete) != archive.md5:
        complete.unlink()
        raise WorkError(f"{archive.name}: the checksum is wrong, the archive was damaged on its way; run again")
    return complete


def _receive(archive: Archive, part: Path, pause: float, report: Callable[[int], None]) -> bool:
    """Append to `part` what is missing, in one request; return whether the file is complete."""
    start, state = _size_of(part), _read_state(part)
    request = urllib.request.Request(archive.url)
    if start and state.get("validator"):
        # If-Range: a file that changed on the server comes whole, instead of a tail that doesn't fit our head.
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", state["validator"])
    with contextlib.closing(_open(request, pause)) as response:
        remote = _remote_of(response.headers)
        total = remote.size
        if response.status == 206:
            first, total = _content_range(response.headers)
            if first != start:
                part.unlink()
                return False
        elif response.status == 416:
            if start == _content_range(response.headers)[1]:
                return True
            part.unlink()
            return False
        else:
            start = 0
            write_json(_state_path(part), {"validator": remote.validator, "size": remote.size})
        position = start
        with part.open("ab" if start else "wb") as handle:
            while chunk := _next_chunk(response):
                handle.write(chunk)
                position += len(chunk)
                report(position)
            if chunk is None:
                return False
    return total is None or position == total


def _next_chunk(response: Any) -> bytes | None:
    """Return the next bytes, b"" at the end, or None where the connection broke."""
    try:
        chunk: bytes = response.read(_CHUNK)
    except _NETWORK_ERRORS:
        return None
    return chunk


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """Return first byte and total size of a "bytes 5-9/10" or "bytes */10" header."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # without it the download starts again
    return state if isinstance(state, dict) else {}


def _md5_of(path: Path) -> str:
    with path.open("rb") as handle:
        # MD5 is what was published; it is asked to find damage.
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _extract(archive: Archive, path: Path, root: Path) -> None:
    """Extract the wanted members; each is complete under its name or not there, so that a killed run can go on."""
    try:
        with zipfile.ZipFile(path) as content:
            members = [m for m in content.infolist() if m.filename.startswith(archive.member_prefix) and not m.is_dir()]
            _require_harmless(archive, path, root, members)
            with progress_bar() as progress:
                for member in progress.track(members, description=f"extracting {archive.name}"):
                    _extract_member(content, member, resolve_inside(root, member.filename))
    except _ARCHIVE_ERRORS as error:
        path.unlink()
        raise WorkError(
            f"{path.name}: damaged archive ({error}); it was deleted, run again to fetch it again"
        ) from None


def _require_harmless(archive: Archive, path: Path, root: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) < archive.n_files:
        raise zipfile.BadZipFile(f"{len(members):,} files under {archive.member_prefix!r}, not {archive.n_files:,}")
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise WorkError(f"{path}: refused, because {member.filename!r} is a symbolic link; extract it yourself")
        if member.flag_bits & 1:
            raise WorkError(f"{path}: refused, because {member.filename!r} is encrypted; extract it yourself")
        try:
            resolve_inside(root, member.filename)
        except UserError as error:
            raise WorkError(f"{path}: refused, because {error}; extract it yourself") from None
    size = sum(member.file_size for member in members)
    if size > 4 * archive.expansion * path.stat().st_size + 2**20:
        raise WorkError(
            f"{path}: refused, because it would extract to {size / 1e9:.1f} GB (zip bomb?); check the file, and "
            "extract it yourself"
        )
    missing = sum(member.file_size for member in members if _size_of(root / member.filename) != member.file_size)
    free = shutil.disk_usage(root).free
    if missing > free:
        raise UserError(
            f"{root}: {path.name} needs {missing / 1e9:.1f} GB of free disk to extract, {free / 1e9:.1f} GB are free; "
            "free some and run again"
        )


def _extract_member(content: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    if _size_of(target) == member.file_size and member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    # Reading to the end verifies the member's CRC.
    with content.open(member) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
    part.replace(target)

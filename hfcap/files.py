"""Reading and writing files so that a kill at any moment leaves either the old or the new content."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hfcap.errors import UserError, WorkError

UNFINISHED = ".*.unfinished-*"
"""Pattern of what is being written under a temporary name; after a kill it stays, and nobody reads it."""

MAX_TEXT_BYTES = 512 * 2**20
"""Largest text or JSON file that is read as a whole: a little more than COCO's annotations of objects."""
MAX_LINE_BYTES = 16 * 2**20
"""Longest line of JSON lines: what a hostile one costs in memory is some twenty times as much."""

_NAME_KEPT = 50
"""Characters of a file's name that its temporary name begins with."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}")
_DEEPEST = 100
"""Levels of lists and objects in JSON; what reads them goes down by recursion."""
_MOST_DIGITS = 308
_MANY_DIGITS = re.compile(rf"[0-9]{{{_MOST_DIGITS + 1}}}")
"""Whole numbers of more digits are larger than any float."""


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_being_written(path: Path) -> Iterator[BinaryIO]:
    """Give an open file that becomes `path` when the block ends without an exception: flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, with what is added too.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_NAME_KEPT]}.unfinished-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: temporary name in the same folder, flush, rename."""
    with file_being_written(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, because readers of other languages refuse them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> str:
    """Read UTF-8 text without the byte order mark that spreadsheets write; `what` names the kind of file in the error.

    Args:
        limit: a file of more bytes is refused before it is read.

    Raises:
        UserError: the file is missing, is a folder, is too large, or is not UTF-8.
    """
    with _user_errors(path, what):
        with path.open("rb") as handle:
            content = handle.read(limit + 1)
        if len(content) > limit:
            raise UserError(
                f"{path}: {what} has more than {limit:,} bytes, the limit for such a file; check that it is the "
                "right one"
            )
        # Spreadsheets save "Unicode text" as UTF-16 with a byte order mark.
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        # As text files are read everywhere: line ends of Windows and of old Macs are line feeds.
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


@contextlib.contextmanager
def _user_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(no_file(path, what)) from None
    except PermissionError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror}); give a file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: {what} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def no_file(path: Path, what: str) -> str:
    """Return what is wrong with a path that must be a file: a folder (with a file in it that may be meant) or nothing.

    Args:
        what: is in the file, as in "prediction file".
    """
    if not path.is_dir():
        return f"{path}: {what} not found; check the path"
    inside = sorted(found for one in ("*.json*", "*.csv", "predictions/*.json*") for found in path.glob(one))
    word = what.split()[0]
    meant = next((found for found in inside if word in str(found.relative_to(path))), inside[0] if inside else None)
    remedy = f"give a file in it, such as {meant}" if meant else "give the file"
    return f"{path}: is a folder, where the {what} is wanted; {remedy}"


def no_folder(path: Path, what: str, remedy: str) -> str:
    """Return what is wrong with a path that must be a folder: a file, or nothing; and what to do."""
    return f"{path}: {f'is a file, where the {what} is wanted' if path.exists() else f'{what} not found'}; {remedy}"


def parse_json(
    text: str,
    where: str,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    lines: bool = False,
    finite: bool = False,
) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        where: file and place, for the error.
        hook: builds objects from their pairs of key and value.
        lines: the text is a file, whose lines are counted; otherwise a piece of a line.
        finite: NaN and infinities, which JSON does not know, are refused.

    Raises:
        UserError: it is not JSON (the message gives the place), is nested too deeply, holds a number of hundreds of
            digits, or spells half a character, which no file could hold again.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
        if text.count("[") + text.count("{") > _DEEPEST and _is_deeper(value, _DEEPEST):
            raise RecursionError
        if "\\u" in text:
            refuse_half_characters(value, text, where)
        if finite or len(text) > _MOST_DIGITS:
            _refuse_numbers(value, text, where, finite)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if lines else f"column {error.colno}"
        raise UserError(
            f"{where} is not valid JSON ({place}: {error.msg}); correct the file, or write it again"
        ) from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; check that it is the right file") from None
    except UserError:
        raise
    except ValueError:
        raise UserError(
            f"{where} holds a number of more than {sys.get_int_max_str_digits():,} digits; correct it"
        ) from None
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested in more than `limit` levels; level by level, as recursion has limits."""
    level = [value]
    for _ in range(limit):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_numbers(value: Any, text: str, where: str, finite: bool) -> None:
    if _MANY_DIGITS.search(text) and _holds_large_number(value):
        raise UserError(f"{where} holds a number of more than {_MOST_DIGITS} digits; correct it")
    if finite and _NOT_FINITE.search(text):
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise UserError(
                f"{where} holds NaN or an infinite number, which JSON does not know; write null instead"
            ) from None


def _holds_large_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_large_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS


def read_json(path: Path, what: str, finite: bool = False) -> Any:
    """Read a JSON file.

    Args:
        finite: NaN and infinities are refused, as in what hfcap writes.

    Raises:
        UserError: the file is missing, too large, or no JSON that can be used (see `parse_json`).
    """
    return parse_json(read_text(path, what), f"{path}: {what}", lines=True, finite=finite)


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} must be a JSON object, not {type(value).__name__}; the file is damaged")
    return value


def refuse_half_characters(value: Any, text: str, where: str) -> None:
    """Refuse JSON whose escapes spell half a character (one UTF-16 surrogate), which no file could hold again.

    Args:
        value: what `text` was parsed to.
        where: file and place, for the error.

    Raises:
        UserError: names the half.
    """
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{where} contains an unpaired surrogate ({half}); remove it or complete the pair") from None


def read_json_lines(path: Path, what: str, finite: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file; blank lines are skipped. Lines are read one by one.

    Args:
        finite: NaN and infinities are refused, as in what hfcap writes.

    Raises:
        UserError: the file is missing, a line is longer than MAX_LINE_BYTES, or is not a JSON object that can be used.
    """
    with _user_errors(path, what):
        handle = path.open("rb")
    with handle:
        # Only the line feed ends a line: str.splitlines would also cut at U+2028, which JSON allows inside strings.
        begin = f"{path}: line "
        for number, line in enumerate(iter(partial(handle.readline, MAX_LINE_BYTES + 1), b""), start=1):
            where = f"{begin}{number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{where} has more than {MAX_LINE_BYTES:,} bytes; write one object a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                with _user_errors(path, f"{what}, line {number},"):
                    raise
            if not text.strip():
                continue
            value = parse_json(text.rstrip("\r\n"), where, finite=finite)
            if not isinstance(value, dict):
                raise UserError(f"{where} must be a JSON object")
            yield number, value


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def check_can_write(path: Path, folder: bool) -> None:
    """Check before long work that a file (or with `folder`, files in a folder) can be written at `path`.

    Raises:
        UserError: `path` is of the other kind, its place is no folder, or nothing may be written there.
    """
    if path.exists() and path.is_dir() != folder:
        raise UserError(
            f"{path}: is a {'file' if folder else 'folder'}; give the name of a {'folder' if folder else 'file'}"
        )
    place = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UserError(f"{path}: cannot be written, because {place} is no folder; give another name")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: nothing may be written in {place}; give another place")


@contextlib.contextmanager
def only_one(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; a killed process holds nothing.

    Where the file system has no locks, nobody is kept away.

    Args:
        busy: what to say where another process holds it; None = wait until it does not.

    Raises:
        UserError: another process holds it, and there is something to say.
    """
    from filelock import FileLock, Timeout  # only here: what starts fast does not need it

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout:
        raise UserError(str(busy)) from None
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        # Deleted while it is held: whoever opened it before sees that it is gone and makes a new one.
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def folder_being_written(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends without an exception.

    An existing `target` is replaced; it stays as it was until the new one is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.unfinished-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush_to_disk(path)
        old: Path | None = None
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.unfinished-old-"))
            target.replace(old / target.name)
        temporary.replace(target)
        _flush_to_disk(target.parent)
        if old is not None:
            shutil.rmtree(old)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        from safetensors import SafetensorError  # only here: what starts fast does not need it

        if isinstance(error, SafetensorError):  # its way to say that the disk is full
            raise WorkError(f"{target}: cannot be written ({error}); make room, or give another place") from error
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_problem(folder: Path) -> str | None:
    """Return why nothing can be written into a folder (a read-only disk, somebody else's); None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror or error})"


def cache_folder() -> Path:
    """Return hfcap's cache folder: HFCAP_CACHE, or ~/.cache/hfcap."""
    return Path(os.environ.get("HFCAP_CACHE") or Path.home() / ".cache" / "hfcap").expanduser()

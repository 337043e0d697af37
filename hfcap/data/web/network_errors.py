"""What can go wrong between this machine and the Hub."""

from __future__ import annotations

import importlib

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError


def transport_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the HTTP library under huggingface_hub (httpx or its successors, by version), and status errors.

    hf_xet, which carries large files, raises Python's own ConnectionError.
    """
    library = importlib.import_module(type(get_session()).__module__.split(".")[0])
    return (HfHubHTTPError, library.HTTPError, ConnectionError)

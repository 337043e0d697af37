"""Checks of what a person sets about a server, wherever it is set."""

from __future__ import annotations

import re

from hfcap.children import TOKENS
from hfcap.served.client import address_problem


def possible_address(base_url: str | None) -> str | None:
    """Return the address of a server, or None where none is set.

    Raises:
        ValueError: nothing can be there, or it holds a secret; the address is not repeated.
    """
    if base_url is not None and (problem := address_problem(base_url)):
        raise ValueError(f"base_url: {problem}")
    return base_url


def name_of_a_variable(api_key_env: str | None) -> str | None:
    """Return the name of the environment variable with a server's key, or None where none is set.

    Raises:
        ValueError: it is no such name, perhaps the key; it is not repeated.
    """
    if api_key_env is None:
        return None
    looks_secret = any(shape.search(api_key_env.encode()) for shape in TOKENS.values())
    if looks_secret or not re.fullmatch(r"[A-Za-z_]\w{0,63}", api_key_env, re.ASCII):
        raise ValueError("api_key_env: must be the name of an environment variable, not the key")
    return api_key_env

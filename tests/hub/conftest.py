"""Fixtures of the Hub server's tests."""

from tests.hub_server import hub  # noqa: F401

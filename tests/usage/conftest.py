"""What the days share: the command line in this process, and a Hub on this machine."""

from tests.cli.conftest import hfcap as hfcap
from tests.hub_server import hub as hub

"""Run your own Hub where there is no internet, or to rehearse publishing.

python -m scripts.hub_server FOLDER [--host 127.0.0.1] [--port 8080] [--accounts FILE] [--owner local]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfcap.errors import UserError
from hfcap.text import printable
from scripts.hub_server.serve import open_hub, serve


def main() -> int:
    """Return 2 where the arguments are wrong, 0 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m scripts.hub_server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where repositories are kept; made if it is not there")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--accounts", type=Path, help="file of accounts; without it everybody may do all")
    parser.add_argument("--owner", default="local", help="name of the account of a Hub without --accounts")
    arguments = parser.parse_args()
    try:
        serve(
            open_hub(arguments.folder, arguments.host, arguments.port, arguments.accounts, arguments.owner),
            lambda text: print(text, flush=True),
        )
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

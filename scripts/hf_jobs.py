"""hfcap on the Hub's machines (HF Jobs): starts jobs through huggingface_hub, or shows what would be sent.

    python -m scripts.hf_jobs --image IMAGE --flavor a10g-small --dry-run run quickstart
    python -m scripts.hf_jobs --image IMAGE --flavor l4x1 --count 8 --volume bucket:you/work:/work \\
        caption you/captioner '/work/shards/*.tar' -o /work/captions --to-shards parquet

IMAGE holds hfcap (the Dockerfile builds one). What follows the options goes to hfcap. `--count N` starts N jobs that
know which of them they are, for captioning into one folder of a volume. `--dry-run` lets huggingface_hub make the
request, sends it to a server in this process alone, and prints it. Your token goes along as a secret, and is never
printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from huggingface_hub import HfApi, JobInfo, Volume, get_token

from hfcap.errors import UserError, WorkError
from hfcap.publishing import hub

LABEL = "hfcap-request"
"""Under it a job has the id of its request, by which it is found again when the answer was lost."""
SHOWN_TOKEN = "(your token)"
_VOLUME = re.compile(r"(bucket|model|dataset|space):([^:]+):(/[^:]*)(:ro)?")
_GOOD_END = "COMPLETED"


@dataclass(frozen=True)
class Asked:
    """What one job does and where.

    Attributes:
        environment: variables that everybody may see. secret: token that the job gets; None = none.
    """

    image: str
    command: list[str]
    environment: dict[str, str]
    flavor: str
    timeout: str
    volumes: list[Volume]
    namespace: str | None
    secret: str | None


def start(api: HfApi, asked: Asked) -> JobInfo:
    """Start one job, and never two: where the answer is lost, it is looked for.

    Raises:
        UserError: not signed in, not allowed, or the Hub refuses the request.
        WorkError: the Hub cannot be reached, and no job was started as far as it says.
    """
    label = {LABEL: uuid.uuid4().hex}
    namespace = asked.namespace or hub.with_retries(lambda: api.whoami()["name"], "asking whose jobs these are")
    try:
        return api.run_job(
            image=asked.image,
            command=asked.command,
            env=asked.environment,
            secrets=None if asked.secret is None else {"HF_TOKEN": asked.secret},
            flavor=asked.flavor,
            timeout=asked.timeout,
            labels=label,
            volumes=asked.volumes or None,
            namespace=namespace,
        )
    except hub.failures() as error:
        cause = hub.root_cause(error)
        if not hub.is_transient(cause):
            raise hub.explained(cause, "starting a job") from None
        doing = "looking whether the job was started"
        found = hub.with_retries(lambda: list(api.list_jobs(labels=label, namespace=namespace)), doing)
        if not found:
            raise hub.explained(cause, "starting a job (none was started)") from None
        return found[0]


class _Recorder(HTTPServer):
    """Answers as the Hub does, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RecordingHandler)
        self.sent: list[dict[str, Any]] = []


class _RecordingHandler(BaseHTTPRequestHandler):
    server: _Recorder

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Say whose jobs these are."""
        self._answer({"name": "YOU", "type": "user"})

    def do_POST(self) -> None:
        """Keep the request and say that a job was started."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent.append({"method": "POST", "path": self.path, "body": body})
        owner = {"id": "0", "name": "YOU", "type": "user"}
        self._answer({"id": "dry-run", "owner": owner, "status": {"stage": "SCHEDULING"}})

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def recorder() -> Iterator[_Recorder]:
    """Give a server of this process that starts no jobs."""
    with _Recorder() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def requests_for(jobs: Sequence[Asked]) -> list[dict[str, Any]]:
    """Return what huggingface_hub would send to start the jobs: method, path and body."""
    with recorder() as server:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_address[1]}", token="hf_dry_run")
        for asked in jobs:
            start(api, asked)
        return server.sent


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options and what goes to hfcap."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--image", required=True, help="Docker image with hfcap, or hf.co/spaces/NAMESPACE/NAME")
    parser.add_argument("--flavor", default="cpu-basic", help="machine, as `hf jobs hardware` names it")
    parser.add_argument("--timeout", default="8h", help="after which a job is ended: 30m, 8h, 2d")
    parser.add_argument(
        "--volume", action="append", default=[], help="TYPE:NAMESPACE/NAME:/PLACE[:ro]; TYPE: bucket, ..."
    )
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE; no secrets")
    parser.add_argument("--namespace", help="an organisation that pays; default: you")
    parser.add_argument("--count", type=int, default=1, help="jobs that caption into one folder")
    parser.add_argument("--config", help="of accelerate, with --processes: recipes/accelerate/fsdp2.yaml")
    parser.add_argument("--processes", type=int, default=1, help="GPUs of the machine that train together")
    parser.add_argument("--no-token", action="store_true", help="the job gets no token")
    parser.add_argument("--dry-run", action="store_true", help="print the requests; nothing is sent to the Hub")
    parser.add_argument("--wait", action="store_true", help="until all jobs have ended; fail where one does")
    parser.add_argument("hfcap", nargs=argparse.REMAINDER, help="run RECIPE, caption MODEL IMAGES ...")
    return parser.parse_args(arguments)


def jobs_of(given: argparse.Namespace, token: str | None) -> list[Asked]:
    """Return the jobs that options ask for.

    Raises:
        UserError: an option is wrong, or several jobs would write the same files.
    """
    if not given.hfcap:
        raise UserError("hfcap: which command? give it after the options: run RECIPE, or caption MODEL IMAGES ...")
    if given.count > 1 and "--to-shards" not in given.hfcap:
        raise UserError(f"--count {given.count}: only captioning with --to-shards is shared by jobs; leave it out")
    if (given.processes > 1) != (given.config is not None):
        raise UserError("--processes, --config: belong together; give both or neither")
    volumes = []
    for text in given.volume:
        if (match := _VOLUME.fullmatch(text)) is None:
            raise UserError(f"--volume {text}: write TYPE:NAMESPACE/NAME:/PLACE, such as bucket:you/work:/work")
        kind, source, place, read_only = match.groups()
        volumes.append(Volume(type=kind, source=source, mount_path=place, read_only=True if read_only else None))
    environment = dict(text.partition("=")[::2] for text in given.env)
    command = ["python", "-m", "hfcap", *given.hfcap]
    if given.config is not None:
        launch = ["accelerate", "launch", "--config_file", given.config, "--num_processes", str(given.processes)]
        command = [*launch, "-m", "hfcap", *given.hfcap]
    places: list[dict[str, str]] = [{}]
    if given.count > 1:
        places = [{"HFCAP_RANK": str(rank), "HFCAP_WORLD_SIZE": str(given.count)} for rank in range(given.count)]
    rest = (given.flavor, given.timeout, volumes, given.namespace, None if given.no_token else token)
    return [Asked(given.image, command, environment | place, *rest) for place in places]


def main(arguments: Sequence[str] | None = None) -> int:
    """Start jobs, or print their requests; returns the exit code."""
    given = parsed(arguments)
    if given.dry_run:
        print(json.dumps(requests_for(jobs_of(given, SHOWN_TOKEN)), indent=2))
        return 0
    token = get_token()
    if token is None:
        raise UserError("HF_TOKEN: not signed in, and jobs belong to an account; run 'hf auth login'")
    api = HfApi()
    started = []
    for asked in jobs_of(given, token):
        started.append(start(api, asked))
        print(f"{started[-1].url}  (hf jobs logs {started[-1].id})", flush=True)
    if not given.wait:
        return 0
    ends = [api.wait_for_job(job.id, namespace=given.namespace).status for job in started]
    for job, end in zip(started, ends, strict=True):
        print(f"{job.id}: {end.stage}{f' ({end.message})' if end.message else ''}")
    return 0 if all(end.stage == _GOOD_END for end in ends) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, WorkError) as failure:
        print(f"{'error' if isinstance(failure, UserError) else 'failed'}: {failure}", file=sys.stderr)
        sys.exit(2 if isinstance(failure, UserError) else 1)

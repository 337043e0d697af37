"""scripts/hf_jobs.py against the loopback Hub: what is sent, lost answers, refusals, and a token that nobody sees."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfcap.errors import UserError, WorkError
from scripts import hf_jobs
from scripts.hub_server import routes
from scripts.hub_server.messages import Answer, Request
from tests.hub_server import Hub
from tests.test_documentation import ROOT, code_blocks

JOBS = ("--image", "registry.example/hfcap:1", "--flavor", "l4x1", "--timeout", "2h")
CAPTION = ("caption", "alice/captioner", "/work/*.tar", "-o", "/work/out", "--to-shards", "parquet")


@pytest.fixture
def jobs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The jobs that the Hub has: what was sent for each, with what the Hub says of it."""
    found: list[dict[str, Any]] = []

    def run(request: Request) -> Answer:
        request.signed_in()
        if request.groups["namespace"] not in ("alice", "club"):
            return Answer.of({"error": "You have no rights in this namespace"}, 403)
        owner = {"id": "1", "name": request.groups["namespace"], "type": "user"}
        found.append({"id": f"job{len(found)}", "owner": owner, "status": {"stage": "RUNNING"}, **request.json()})
        return Answer.of(found[-1])

    def listed(request: Request) -> Answer:
        wanted = dict(text.split("=", 1) for text in request.query.get("label", []))
        return Answer.of([job for job in found if wanted.items() <= job["labels"].items()])

    def look(request: Request) -> Answer:
        [job] = [job for job in found if job["id"] == request.groups["job"]]
        ended = "ERROR" if "fails" in job["command"] else "COMPLETED"
        return Answer.of({**job, "status": {"stage": ended, "message": "exit code 1" if ended == "ERROR" else None}})

    own = [
        ("run_job", ("POST",), r"/api/jobs/(?P<namespace>[\w-]+)", run),
        ("list_jobs", ("GET",), r"/api/jobs/(?P<namespace>[\w-]+)", listed),
        ("inspect_job", ("GET",), r"/api/jobs/(?P<namespace>[\w-]+)/(?P<job>\w+)", look),
    ]
    monkeypatch.setattr(routes, "ROUTES", [*own, *routes.ROUTES])
    monkeypatch.setenv("HF_TOKEN", hub.alice)
    yield found


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(
    hub: Hub, jobs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*JOBS, "--count", "2", "--volume", "bucket:alice/work:/work", "--env", "A=b=c", *CAPTION)
    assert hf_jobs.main(["--dry-run", *arguments]) == 0
    printed = capsys.readouterr().out
    # huggingface_hub itself asks for /api/agent-harnesses.
    assert jobs == [] and hub.calls("run_job") == hub.calls("whoami") == 0 and hub.alice not in printed
    shown = json.loads(printed)
    assert hf_jobs.main(arguments) == 0
    said = capsys.readouterr()
    assert hub.alice not in said.out + said.err and f"{hub.endpoint}/jobs/alice/job1" in said.out
    for number, (request, job) in enumerate(zip(shown, jobs, strict=True)):
        assert (request["method"], request["path"]) == ("POST", "/api/jobs/YOU")
        body = request["body"]
        assert body["secrets"] == {"HF_TOKEN": "(your token)"} and job["secrets"] == {"HF_TOKEN": hub.alice}
        # Everything else is what the Hub then got; requests have an id of their own.
        own = ("labels", "secrets")
        assert {key: value for key, value in body.items() if key not in own} == {
            key: value for key, value in job.items() if key not in (*own, "id", "owner", "status")
        }
        assert job["command"] == ["python", "-m", "hfcap", *CAPTION]
        assert job["environment"] == {"A": "b=c", "HFCAP_RANK": str(number), "HFCAP_WORLD_SIZE": "2"}
        assert (job["dockerImage"], job["flavor"], job["timeoutSeconds"]) == (JOBS[1], "l4x1", 7200)
        assert job["volumes"] == [{"type": "bucket", "source": "alice/work", "mountPath": "/work"}]


@pytest.mark.parametrize(("fault", "n_calls"), [("drop_after", 1), ("truncated", 1)])
def test_a_lost_answer_starts_no_second_job(
    fault: str, n_calls: int, hub: Hub, jobs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.add(fault, "run_job")
    assert hf_jobs.main([*JOBS, "run", "quickstart"]) == 0
    assert len(jobs) == hub.calls("run_job") == n_calls
    assert "jobs/alice/job0" in capsys.readouterr().out


def test_a_request_that_never_arrived_is_said_to_have_started_nothing(hub: Hub, jobs: list[dict[str, Any]]) -> None:
    hub.faults.add("drop_before", "run_job")
    with pytest.raises(WorkError, match=r"starting a job \(none was started\): the connection failed"):
        hf_jobs.main([*JOBS, "run", "quickstart"])
    assert jobs == []


def test_several_gpus_and_the_end_of_jobs(
    hub: Hub, jobs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = "recipes/accelerate/fsdp2.yaml"
    given = (*JOBS, "--config", config, "--processes", "4", "--no-token", "--namespace", "club", "--wait")
    assert hf_jobs.main([*given, "run", "quickstart"]) == 0
    assert jobs[0]["command"][:6] == ["accelerate", "launch", "--config_file", config, "--num_processes", "4"]
    assert "secrets" not in jobs[0]
    assert hf_jobs.main([*given, "run", "fails"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "job1: ERROR (exit code 1)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which command?"),
        (["--count", "2", "run", "x"], "--count 2: only captioning with --to-shards"),
        (["--processes", "2", "run", "x"], "--processes, --config: belong together"),
        (["--volume", "work:/work", "run", "x"], "--volume work:/work: write TYPE:NAMESPACE/NAME:/PLACE"),
        (["--namespace", "mallory", "run", "x"], "starting a job: no permission"),
    ],
)
def test_wrong_options(arguments: list[str], said: str, jobs: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=said):
        hf_jobs.main([*JOBS, *arguments])
    assert jobs == []


def test_who_is_not_signed_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN: not signed in"):
        hf_jobs.main([*JOBS, "run", "quickstart"])


def test_the_commands_of_the_page_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(code_blocks(ROOT / "docs/scaling.md", "bash")).replace("\\\n", " ").splitlines()
    shown = [line for line in lines if "scripts.hf_jobs" in line]
    assert len(shown) == 2
    for line in shown:
        arguments = shlex.split(line)
        assert arguments[:3] == ["python", "-m", "scripts.hf_jobs"]
        assert hf_jobs.main(["--dry-run", *arguments[3:]]) == 0
        assert json.loads(capsys.readouterr().out)

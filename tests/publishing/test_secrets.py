"""Every kind of secret and private path is found by its own pattern, at its shortest length, and named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from hfcap.children import names_secret
from hfcap.errors import UserError
from hfcap.publishing import secrets
from hfcap.publishing.secrets import machine_folders, redact, refuse_secrets, scan

# Put together here, so that no scanner takes this file for a leak. Each is as short as its service makes them.
SAMPLES = {
    "a Hugging Face token": ["hf_" + "aB3" * 10, "api_org_" + "Zz9" * 10],
    "a GitHub token": [*(f"gh{kind}_" + "a1B2" * 9 for kind in "pousr"), "github_pat_" + "a_1B" * 15],
    "an AWS access key": ["AKIA" + "ABCD1234" * 2, "ASIA" + "ABCD1234" * 2],
    "a Google API key": ["AIza" + "a-_Z9" * 7],
    "a GitLab, npm, PyPI or Stripe token": [
        "glpat-" + "a-B_2" * 4,
        "npm_" + "a1B2" * 9,
        "pypi-" + "a-B_2" * 10,
        "sk_live_" + "a1B2" * 5,
        "rk_live_" + "a1B2" * 5,
    ],
    "a signed web token": ["eyJ" + "a-_1" * 3 + ".eyJ" + "b-_2" * 3 + "." + "c-_3" * 3],
    "a signed web address": [
        f"https://host.example/x{mark}{name}=" + "aF%/" * 4
        for mark in "?&"
        for name in ("token", "sig", "Signature", "X-Amz-Signature", "access_token", "accesstoken", "api_key", "apikey")
    ],
    "a bearer token": ["Authorization: Bearer " + "a.~+" * 3, "'authorization': 'bearer " + "a_/-" * 3 + "'"],
    "a Slack token": [f"xox{kind}-" + "1a-B2" * 2 for kind in "abprs"],
    "an OpenAI or Anthropic key": ["sk-" + "aB_-" * 8],
    "a private key": [
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
    ],
    "a password in a web address": ["https://me:word@host.example/x", "postgresql+psycopg://me:p.w-d@db.example/x"],
    "a key or password": [
        f"{name}{between}" + "a+/-_" * 4
        for name in ("api_key", "APIKEY", "access_token", "accesstoken", "auth_token", "Secret", "passwd", "PASSWORD")
        for between in (": ", "=", '": "', "' = '")
    ],
}
PRIVATE_FOLDERS = (
    "home", "Users", "mnt", "media", "scratch", "workspace", "root", "tmp", "var", "nfs", "lustre", "gpfs", "Volumes",
    "kaggle", "data", "opt",
)  # fmt: skip


def kinds_in(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "a.md").write_text(f"first line\nsee {text} here")
    found = scan(tmp_path)
    assert {(finding.file, finding.line) for finding in found} <= {("a.md", 2)}
    assert all(text not in str(finding) for finding in found), "a finding names the kind, never the secret"
    return [finding.kind for finding in found]


def test_every_pattern_has_its_samples() -> None:
    assert SAMPLES.keys() == secrets._PATTERNS.keys()


@pytest.mark.parametrize(("kind", "sample"), [(kind, sample) for kind in SAMPLES for sample in SAMPLES[kind]])
def test_each_kind_of_secret_is_found(kind: str, sample: str, tmp_path: Path) -> None:
    # By this pattern and no other, so that none hides that another is gone.
    assert kinds_in(sample, tmp_path) == [kind]


@pytest.mark.parametrize("folder", PRIVATE_FOLDERS)
def test_each_kind_of_private_path_is_found(folder: str, tmp_path: Path) -> None:
    assert kinds_in(f"/{folder}/me", tmp_path) == ["a path of this machine"]
    for harmless in (f"and/{folder}/me", f"../{folder}/me", f"x.{folder}/me", f"/{folder}", f"-/{folder}/me"):
        assert kinds_in(harmless, tmp_path) == [], harmless


@pytest.mark.parametrize("path", ["C:/Users", "d:\\Users", "D:\\\\Users\\\\me", "file:///x", "file://host/x"])
def test_paths_of_other_systems_are_found(path: str, tmp_path: Path) -> None:
    assert kinds_in(path, tmp_path) == ["a path of this machine"]


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "aB3" * 9,
        "xAKIA" + "ABCD1234" * 2,
        "AKIA" + "ABCD1234" * 2 + "X",
        "api_key: " + "a1" * 9,
        "https://host.example/x?token=short",
        "https://host.example:8080/a@b",
        "-----BEGIN PUBLIC KEY-----",
        "risk-" + "aB_-" * 8,
    ],
)
def test_what_only_looks_like_a_secret_is_none(text: str, tmp_path: Path) -> None:
    assert kinds_in(text, tmp_path) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"])
def test_vocabularies_and_images_are_searched_for_what_this_machine_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold fragments of any text; a secret of this machine is one wherever it stands."""
    monkeypatch.setenv("SERVICE_TOKEN", "quite-a-secret")
    for place in (name, "a.png", "b.jpg", "c.model"):
        (tmp_path / place).write_text("AKIA" + "ABCD1234" * 2 + " /home/somebody/x")
    assert scan(tmp_path) == []
    (tmp_path / name).write_text(f"one\ntwo quite-a-secret {Path.home() / 'x'}")
    kinds = {(found.line, found.kind) for found in scan(tmp_path)}
    assert (2, "a secret of this machine's environment") in kinds
    assert ((2, "a path of this machine") in kinds) == (len(Path.home().parts) > 2)


def test_which_variables_hold_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "CLIENT_SECRET", "DB_PASSWORD", "SMTP_PASSWD", "MY_API_KEY", "apikey", "ACCESS_KEY",
                 "PRIVATE_KEY", "AWS_CREDENTIALS"):  # fmt: skip
        assert names_secret(name), name
    assert not any(map(names_secret, ("HOME", "KEYBOARD", "LANG", "KEY", "PUBLIC_KEY")))
    for name, value in {
        "A_TOKEN": "twelve-chars", "B_TOKEN": "eleven-char", "C_TOKEN_PATH": "/etc/some/place", "D_TOKEN": "~/my/token",
        "E_NAME": "an-ordinary-name",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = secrets.known_secrets()
    assert b"twelve-chars" in found
    assert not {b"eleven-char", b"/etc/some/place", b"~/my/token", b"an-ordinary-name"} & set(found)


def test_the_token_of_the_hub_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "shortone")
    (tmp_path / "a.md").write_text("shortone")
    assert [found.kind for found in scan(tmp_path)] == ["a secret of this machine's environment"]
    assert redact("use shortone twice: shortone") == "use [secret] twice: [secret]"
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert scan(tmp_path) == []


def test_folders_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HFCAP_CACHE", "TORCH_HOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, f"/srv/of/{name}")
    monkeypatch.setenv("HOME", "/srv/of/me")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/srv/of/scratch")
    (tmp_path / "work" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    expected = {"HF_HOME", "HF_HUB_CACHE", "HFCAP_CACHE", "TORCH_HOME", "VIRTUAL_ENV", "me", "scratch"}
    found = {path.decode() for path in machine_folders(tmp_path / "link" / "x", Path("/srv"))}
    assert found == {f"/srv/of/{name}" for name in expected} | {str(tmp_path / "work"), str(tmp_path / "work" / "x")}


def test_a_private_folder_is_found_as_a_whole_name(tmp_path: Path) -> None:
    private = tmp_path / "my.run"
    public = tmp_path / "out"
    public.mkdir()
    for text, kinds in (
        (f"see {private}", ["a path of this machine"]),
        (f"see {private}/model", ["a path of this machine"]),
        (f"see {private}-2", []),
        (f"see {str(private).replace('.', '-')}", []),
    ):
        # In a vocabulary only such folders are looked for.
        (public / "vocab.txt").write_text(text)
        assert [found.kind for found in scan(public, [private])] == kinds, text


def test_what_json_escapes_spell_is_read_too(tmp_path: Path) -> None:
    key = "AKIA" + "ABCD1234" * 2
    hidden = "".join(f"\\u00{ord(letter):02x}" for letter in key)
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).write_text('{"a": "' + hidden + '"}')
    (tmp_path / "c.md").write_text(hidden)  # no JSON: there it spells nothing
    assert [(found.file, found.kind) for found in scan(tmp_path)] == [
        ("a.json", "an AWS access key"),
        ("b.jsonl", "an AWS access key"),
    ]


def test_findings_name_the_first_line_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "value-of-my-token")
    private, public = tmp_path / "private run", tmp_path / "out"
    public.mkdir()
    lines = ["first", f"see {private}", "value-of-my-token", "xoxb-" + "1a-B2" * 2]
    (public / "a.md").write_text("\n".join([*lines, *lines]))
    assert [str(found) for found in scan(public, [private])] == [
        "a.md, line 3: a secret of this machine's environment",
        "a.md, line 2: a path of this machine",
        "a.md, line 4: a Slack token",
    ]
    (public / "a.md").unlink()
    (public / "vocab.txt").write_text(f"see {private}")  # searched for what this machine really has
    refuse_secrets(public)
    with pytest.raises(UserError, match=r"vocab\.txt, line 1: a path of this machine"):
        refuse_secrets(public, [private])


def test_folders_are_found_however_json_writes_them(tmp_path: Path) -> None:
    private, public = Path("/daten/Müllers run"), tmp_path
    (public / "vocab.json").write_text(json.dumps({"a": str(private)}, ensure_ascii=False).replace("/", "\\/"))
    header = json.dumps({"__metadata__": {"from": str(private)}}).encode()
    (public / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    found = [(finding.file, finding.kind) for finding in scan(public, [private])]
    assert found == [("model.safetensors", "a path of this machine"), ("vocab.json", "a path of this machine")]


def test_only_the_text_of_safetensors_is_searched(tmp_path: Path) -> None:
    """Numbers may spell anything."""
    header = (
        b'{"__metadata__": {"a\\nb": "\\/home\\/me\\/x"}, "w": {"dtype": "U8", "shape": [20], "data_offsets": [0, 20]}}'
    )
    numbers = b"AKIA" + b"ABCD1234" * 2
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)
    assert [str(found) for found in scan(tmp_path)] == ["model.safetensors, line 1: a path of this machine"]
    for damaged in (
        b"short",
        numbers,
        struct.pack("<Q", len(header)) + header + numbers[1:],
        struct.pack("<Q", len(header)) + header.replace(b"[0,", b"[9,") + numbers,
    ):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"model\.safetensors: is no complete safetensors file \(.*; save the model"
        ):
            scan(tmp_path)
    empty = b'{"__metadata__": {}}'
    path.write_bytes(struct.pack("<Q", len(empty)) + empty)
    assert scan(tmp_path) == []
    path.write_bytes(struct.pack("<Q", 100 * 2**20 + 1) + empty)
    with pytest.raises(UserError, match="no complete safetensors"):
        scan(tmp_path)


def test_the_refusal_lists_where_and_what_to_do(tmp_path: Path) -> None:
    refuse_secrets(tmp_path)
    for number in range(25):
        (tmp_path / f"{number:02}.md").write_text("xoxb-" + "1a-B2" * 2)
    with pytest.raises(UserError) as caught:
        refuse_secrets(tmp_path)
    first, *places, last = str(caught.value).splitlines()
    assert first == "not published, because the files hold what should stay private:"
    assert places == [f"  {number:02}.md, line 1: a Slack token" for number in range(20)]
    assert last == "remove it from the run (recipe, captions, model files), then stage again"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("token hf_" + "aB3" * 3 + " is bad", "token [secret] is bad"),
        ("api_org_" + "aB3" * 3, "[secret]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [secret]"),
        ("bearer x", "bearer [secret]"),
        ("hf_short and a bearer", "hf_short and a bearer"),
    ],
)
def test_tokens_in_messages_of_others_are_redacted(text: str, clean: str) -> None:
    assert redact(text) == clean

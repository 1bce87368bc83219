"""`Dockerfile` and `deploy/compose`: read by real tools, agreed with the settings, built and run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.runtime.process import open_files_needed
from scp_server.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
BUILD_SECONDS = 900.0
RUN_SECONDS = 120.0
_OPEN_FILES = "nofile=16384:16384"
"""As in the compose file; buildah's own limit is lower than any container engine's."""
RequirePeer = Callable[[str, object], None]


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without settings of ours."""
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)
    return monkeypatch


def _image_settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the image's own variables make."""
    for name, value in re.findall(r"(SCP_SERVER_\w+)=(\S+)", DOCKERFILE.read_text()):
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture
def service(require_peer: RequirePeer) -> dict[str, Any]:
    """The service of the compose file."""
    require_peer("PyYAML", importlib.util.find_spec("yaml"))
    document = importlib.import_module("yaml").safe_load(COMPOSE.read_text())
    found: dict[str, Any] = document["services"]["scp-server"]
    assert set(document["volumes"]) == {volume.partition(":")[0] for volume in found["volumes"]}
    return found


@pytest.mark.interop
def test_hadolint_finds_nothing_in_the_dockerfile(require_peer: RequirePeer) -> None:
    beside = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))
    require_peer("hadolint", hadolint)
    ended = subprocess.run(
        [hadolint or "", str(DOCKERFILE)], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stdout + ended.stderr


def test_the_image_listens_where_a_published_port_leads(no_settings: pytest.MonkeyPatch) -> None:
    settings = _image_settings(no_settings)
    assert (settings.listen.host, settings.http.host) == ("0.0.0.0", "0.0.0.0")
    assert f"EXPOSE {settings.listen.port} {settings.http.port}" in DOCKERFILE.read_text()
    assert f"VOLUME {settings.data_dir}" in DOCKERFILE.read_text()


def test_the_compose_file_agrees_with_the_settings(
    service: dict[str, Any], no_settings: pytest.MonkeyPatch
) -> None:
    for name, value in service["environment"].items():
        assert isinstance(value, str), f"{name} must be quoted"
        no_settings.setenv(name, value)
    settings = _image_settings(no_settings)
    inside = [int(port.rpartition(":")[2]) for port in service["ports"]]
    assert inside == [settings.listen.port, settings.http.port]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    stop_seconds = settings.drain_timeout_seconds + settings.close_timeout_seconds
    assert int(service["stop_grace_period"].removesuffix("s")) > stop_seconds
    limits = settings.limits
    needed = open_files_needed(limits.max_connections, limits.max_associations)
    assert service["ulimits"]["nofile"] >= needed
    assert [volume.rpartition(":")[2] for volume in service["volumes"]] == [str(settings.data_dir)]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert f":{settings.http.port}/readyz" in service["healthcheck"]["test"][-1]
    assert (ROOT / "deploy" / "compose" / service["build"] / "Dockerfile").is_file()


class Image:
    """The image, built on a Debian of our own making: no registry is asked."""

    def __init__(self, folder: Path) -> None:
        self.name = f"localhost/scp-server-test:{os.getpid()}"
        self._base = f"localhost/scp-server-test-base:{os.getpid()}"
        archive = folder / "base.tar"
        packages = "ca-certificates,python3,python3-venv,python3-pip"
        _run(
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={packages}",
            "bookworm",
            str(archive),
        )
        empty = _run("buildah", "from", "scratch").strip()
        _run("buildah", "add", empty, str(archive), "/")
        _run("buildah", "commit", "--rm", empty, self._base)
        _run(
            *("buildah", "bud", "--format", "docker", "--isolation", "chroot", "--network", "host"),
            *("--build-arg", f"BASE={self._base}", *_certificates(), "-t", self.name, str(ROOT)),
        )
        self.container = _run("buildah", "from", "--ulimit", _OPEN_FILES, self.name).strip()

    def remove(self) -> None:
        """Take everything away again."""
        _run("buildah", "rm", self.container)
        _run("buildah", "rmi", self.name, self._base)

    def command(self, *arguments: str) -> list[str]:
        """What runs `arguments` inside; `buildah run` does without the entrypoint."""
        isolation = ["buildah", "run", "--isolation", "chroot", "--network", "host"]
        return [*isolation, self.container, "--", *arguments]


def _certificates() -> tuple[str, ...]:
    """The certificates that pip trusts here, where it was told of others than its own."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    return ("--volume", f"{bundle}:/trusted.crt:ro", "--build-arg", "PIP_CERT=/trusted.crt") if bundle else ()


def _run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    wanted = os.environ.get("CI") == "true" or os.environ.get("SCP_BUILD_IMAGE") == "1"
    if not wanted:
        pytest.skip("an image is built in CI, and with SCP_BUILD_IMAGE=1")
    assert os.geteuid() == 0, "only root builds an image"
    missing = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    assert not missing, f"{missing} not installed"
    built = Image(tmp_path_factory.mktemp("image"))
    yield built
    built.remove()


@pytest.mark.slow
@pytest.mark.interop
def test_the_image_says_how_it_is_run(image: Image) -> None:
    config = json.loads(_run("buildah", "inspect", image.container))["Docker"]["config"]
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["scp-server"], ["serve"])
    assert set(config["Volumes"]) == {"/data"}
    assert set(config["ExposedPorts"]) == {"11112/tcp", "8080/tcp"}
    assert config["Healthcheck"]["Test"][0] == "CMD"


@pytest.mark.slow
@pytest.mark.interop
def test_the_image_serves_is_healthy_and_stops_at_sigterm(image: Image) -> None:
    assert _run(*image.command("id", "-u")).strip() == "10001"
    assert "there, byte for byte" in _run(*image.command("scp-server", "demo", "--once"))
    serve = image.command(
        "env", "SCP_SERVER_LISTEN__PORT=0", "SCP_SERVER_HTTP__PORT=0", "scp-server", "serve"
    )
    with subprocess.Popen(serve, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        ready = next(record for line in process.stderr if (record := _ready(line)))
        health = json.loads(_run("buildah", "inspect", image.container))["Docker"]["config"]["Healthcheck"]
        probe = ("env", f"SCP_SERVER_HTTP__PORT={ready['http_port']}", *health["Test"][1:])
        _run(*image.command(*probe))
        _run(*image.command("scp-server", "echo", "--port", str(ready["dicom_port"])))
        # Isolated by chroot only: its process id is one of this host's.
        os.kill(ready["pid"], signal.SIGTERM)
        process.stderr.read()
        assert process.wait(RUN_SECONDS) == 0


def _ready(line: str) -> dict[str, Any]:
    record = json.loads(line) if line.startswith("{") else {}
    return record if record.get("event") == "server.ready" else {}

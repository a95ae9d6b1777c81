"""A Prometheus on this machine, on the loopback address, with the shipped rules.

`rayvisor metrics --targets --json | python -m rayvisor.ops.prometheus_server` runs one for the
cluster that is up, until ctrl-C; `make monitoring` does both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from rayvisor.vmm.errors import ConfigError, RayvisorError

if TYPE_CHECKING:
    from types import TracebackType

SHIPPED: Final = Path(__file__).resolve().parent / "prometheus"
CLUSTER_ADDRESS: Final = "127.0.0.1:9471"
"""What stands in the shipped configuration."""

LOOPBACK: Final = "127.0.0.1"
USUAL_PORT: Final = 9090
START_S: Final = 30.0
STOP_S: Final = 10.0


class PrometheusError(RayvisorError):
    """Prometheus is missing, does not start, or refuses a query."""


def configuration(cluster_address: str, *, every_s: int | None = None) -> str:
    """The shipped configuration for the cluster whose metrics are at HOST:PORT.

    With `every_s`, everything is done every so many seconds, to see something soon.
    """
    text = (SHIPPED / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace(CLUSTER_ADDRESS, cluster_address)
    return text if every_s is None else text.replace("15s", f"{every_s}s")


class PrometheusServer:
    """Debian's Prometheus over a folder of its own, as a context.

    Attributes:
        url: where it answers.
    """

    def __init__(self, cluster_address: str, *, port: int = 0, every_s: int | None = None) -> None:
        """Prepare it; `port` 0 takes any.

        Raises:
            PrometheusError: it is not installed.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise PrometheusError("prometheus is missing: apt-get install prometheus")
        self._folder = Path(tempfile.mkdtemp(prefix="rayvisor-prometheus-"))
        config = self._folder / "prometheus.yml"
        config.write_text(configuration(cluster_address, every_s=every_s), encoding="utf-8")
        shutil.copy(SHIPPED / "rules.yaml", self._folder)
        address = f"{LOOPBACK}:{port or _free_port()}"
        self.url = f"http://{address}"
        self._log = self._folder / "log"
        self._command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={address}",
            "--storage.tsdb.retention.time=1d",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready.

        Raises:
            PrometheusError: it is not, in time; nothing is left of it.
        """
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/-/ready"):  # noqa: S310 - http, made here
                return self
            time.sleep(0.1)
        lines = self._log.read_text(errors="replace").splitlines() or ["it said nothing"]
        self.__exit__(None, None, None)
        raise PrometheusError(f"prometheus does not start: {lines[-1][:300]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and remove what it kept."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> int:
        """Wait for it to end by itself; its exit status."""
        assert self._process is not None, "wait() is for inside the context"  # noqa: S101
        return self._process.wait()

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The samples that a query gives now.

        Raises:
            PrometheusError: it is no query.
        """
        answer = self.get("query", query=promql)
        return list(answer["result"])

    def get(self, what: str, **parameters: str) -> Any:  # noqa: ANN401 - what the API gives
        """The data of an API call (prometheus.io/docs/prometheus/latest/querying/api)."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url) as answer:  # noqa: S310 - http, made here
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            raise PrometheusError(f"prometheus refuses {what}: {detail[:300]}") from None


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((LOOPBACK, port)):
        return True
    return False


def main() -> int:
    """Run Prometheus for the cluster whose targets come on standard input."""
    parser = argparse.ArgumentParser(description="Prometheus for the cluster that is up.")
    parser.add_argument("--port", type=int, default=USUAL_PORT, help="default: %(default)s")
    parser.add_argument("--every", type=int, default=5, metavar="SECONDS", help="scrape so often")
    options = parser.parse_args()
    try:
        text = sys.stdin.read()
        address = json.loads(text).get("cluster") if text else ""
        if not address:
            raise ConfigError("the cluster serves no metrics: `rayvisor metrics --targets`")
        port = options.port if _is_free(options.port) else 0
        with PrometheusServer(address, port=port, every_s=options.every) as server:
            sys.stdout.write(
                f"Prometheus is at {server.url} (alerts: {server.url}/alerts,"
                f" targets: {server.url}/targets).\nctrl-C ends it; the cluster stays up.\n"
            )
            sys.stdout.flush()
            return server.wait()
    except KeyboardInterrupt:
        return 0
    except RayvisorError as error:
        sys.stderr.write(f"rayvisor: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

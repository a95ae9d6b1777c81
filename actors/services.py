"""What else runs in the process of a host and of the cluster actor: told by name.

Hosts serve their metrics, but this room knows nothing of metrics: it starts what `HOST` and
`CLUSTER` name, and gives it the plain object behind the actor. A service is a function of that
object and of `announce`, by which it says where it can be reached; it must not wait.
"""

from __future__ import annotations

import logging
import pkgutil
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

HOST: Final = ("rayvisor.ops.exposition:serve_host",)
CLUSTER: Final = ("rayvisor.ops.exposition:serve_cluster",)
CLUSTER_ID: Final = "cluster"
_PREFIX = "service/"


def start(names: Sequence[str], subject: object, store: KeyValueStore, where: str) -> None:
    """Start services on a thread of their own: what they import must not delay an actor.

    Args:
        names: as "module:function".
        subject: what they serve.
        store: where their addresses are written down.
        where: the host's id, or `CLUSTER_ID`.
    """

    def announce(address: str) -> None:
        store.put(_PREFIX + where, address.encode())

    def run() -> None:
        for name in names:
            try:
                serve: Any = pkgutil.resolve_name(name)
                serve(subject, announce)
            except Exception as error:  # noqa: BLE001 - VMs run on without it
                _log.warning("%s does not start: %s", name, error)

    threading.Thread(target=run, name="services", daemon=True).start()


def addresses(store: KeyValueStore) -> dict[str, str]:
    """Where services said they are, as HOST:PORT by host id, and `CLUSTER_ID`."""
    found = {}
    for key in store.keys(_PREFIX):
        value = store.get(key)
        if value is not None:
            found[key.removeprefix(_PREFIX)] = value.decode()
    return found

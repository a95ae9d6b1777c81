"""Where the ledger is written down: beside the cluster, not in a process of ours."""

from __future__ import annotations

from typing import Any, Protocol, cast

from ray.experimental import internal_kv

from rayvisor.vmm.errors import ClusterError

_NAMESPACE = b"rayvisor"


class KeyValueStore(Protocol):
    """A small map that outlives the process that writes it."""

    def get(self, key: str) -> bytes | None:
        """The value, or None."""

    def put(self, key: str, value: bytes) -> None:
        """Set the value; it is there for every reader when this returns."""

    def put_new(self, key: str, value: bytes) -> bytes:
        """Set the value if there is none; what is there now. Of several at once, one wins."""

    def delete(self, key: str) -> None:
        """Forget the key. Harmless when it is not there."""

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""

    def items(self, prefix: str) -> dict[str, bytes]:
        """Every key that starts with `prefix` with its value, sorted, in two questions."""


class RayStore:
    """The key-value store of Ray's control service (GCS), reachable from every node.

    It lives as long as the Ray cluster: actors and VMs come and go, and when it is lost, so
    are all of them.
    """

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        value = internal_kv._internal_kv_get(key.encode(), namespace=_NAMESPACE)  # noqa: SLF001
        return cast("bytes | None", value)

    def put(self, key: str, value: bytes) -> None:
        """Set the value."""
        internal_kv._internal_kv_put(  # noqa: SLF001 - Ray offers no public one
            key.encode(), value, overwrite=True, namespace=_NAMESPACE
        )

    def put_new(self, key: str, value: bytes) -> bytes:
        """Set the value if there is none; what is there now."""
        there = internal_kv._internal_kv_put(  # noqa: SLF001 - as above
            key.encode(), value, overwrite=False, namespace=_NAMESPACE
        )
        if not there:
            return value
        found = self.get(key)
        if found is None:
            raise ClusterError(f"{key} was forgotten this moment")
        return found

    def delete(self, key: str) -> None:
        """Forget the key."""
        internal_kv._internal_kv_del(key.encode(), namespace=_NAMESPACE)  # noqa: SLF001

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""
        found = internal_kv._internal_kv_list(  # noqa: SLF001
            prefix.encode(), namespace=_NAMESPACE
        )
        return sorted(key.decode() for key in found)

    def items(self, prefix: str) -> dict[str, bytes]:
        """Every key that starts with `prefix` with its value, sorted."""
        keys = [key.encode() for key in self.keys(prefix)]
        if not keys:
            return {}
        client: Any = internal_kv.internal_kv_get_gcs_client()
        found = client.internal_kv_multi_get(keys, _NAMESPACE)
        return {key.decode(): found[key] for key in keys if key in found}

"""Errors as they were raised, whatever Ray wrapped around them on the way."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rayvisor.vmm.errors import ClusterError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Inside, an error that an actor raised comes out as the error itself.

    Raises:
        RayvisorError: what the actor raised.
        ClusterError: the actor did not answer in time, or is gone.
    """
    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, RayvisorError):
            raise cause from None
        raise
    except GetTimeoutError:
        raise ClusterError("the cluster does not answer in time; try again") from None
    except RayError as error:
        first, *_ = str(error).splitlines() or [""]
        raise ClusterError(f"a part of the cluster is gone: {first}") from error

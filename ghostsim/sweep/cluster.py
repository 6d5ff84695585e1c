"""Computes points on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ghostsim.errors import GhostsimError, UsageError

if TYPE_CHECKING:
    from distributed import Client

_CONNECT_S = 10
_ADDRESS = re.compile(r"^(tcp|tls|ws|wss)://[^/\s]+:[0-9]{1,5}$")


class WorkerLostError(Exception):
    """The workers that were given a task died one after the other."""


class _Cluster(Executor):
    """Submits to the workers of a scheduler; a task whose worker dies is given to another."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def room(self) -> int:
        """How many tasks the workers can run at once; of workers that are yet to come, one."""
        return max(1, int(sum(self._client.nthreads().values())))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Return a future of `fn` on a worker."""
        future: Future[Any] = Future()
        self._client.submit(_as_parent, fn, *args, pure=False, **kwargs).add_done_callback(
            lambda done: _hand_over(done, future)
        )
        return future


def _as_parent(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call `fn` in a worker that may start processes, as evaluating a policy does: Dask marks its own as daemons."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # noqa: SLF001
    return fn(*args, **kwargs)


def _hand_over(done: Any, future: Future[Any]) -> None:  # noqa: ANN401
    """Give a future of Dask's outcome to one that the standard library can wait for."""
    from distributed import KilledWorker  # noqa: PLC0415  (an extra)

    try:
        future.set_result(done.result())
    except KilledWorker:
        future.set_exception(WorkerLostError())
    except BaseException as error:  # noqa: BLE001  (whatever it is ends the sweep, not the thread of the callback)
        future.set_exception(GhostsimError(f"--scheduler: found {type(error).__name__} ({error}), expected a result"))


@contextmanager
def cluster(scheduler: str) -> Iterator[Executor]:
    """Yield an executor on the workers of the Dask scheduler at an address.

    Raises
    ------
    UsageError
        If Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client  # noqa: PLC0415  (an extra)
    except ImportError:
        raise UsageError(
            "--scheduler: found no dask.distributed, expected it: pip install 'ghostsim[cluster]'"
        ) from None
    if not _ADDRESS.match(scheduler):
        raise UsageError(f"--scheduler: found {scheduler!r}, expected an address, e.g. tcp://HOST:8786")
    try:
        client = Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise UsageError(
            f"--scheduler: found no Dask scheduler at {scheduler} ({error}), expected one, e.g. at tcp://HOST:8786"
        ) from None
    with client:
        yield _Cluster(client)

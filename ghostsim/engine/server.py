"""Servers that take one job at a time per place, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

import simpy

from ghostsim.engine.clock import Call
from ghostsim.errors import InvariantError

Done: TypeAlias = Callable[[], object]
Service: TypeAlias = int | Callable[[Done], object]


class Server(Protocol):
    """What a job waits at."""

    def submit(self, service_ps: Service, on_done: Done) -> None:
        """Queue a job and call `on_done` when it is done."""


class FifoServer:
    """`places` equal servers with one queue: filter engines, dies, command processors.

    Attributes
    ----------
    waits_ps
        Time that each job spent in the queue, in the order of service.
    busy_ps
        Time that places were held by finished jobs, summed over places.
    """

    def __init__(self, env: simpy.Environment, places: int = 1) -> None:
        if places < 1:
            raise ValueError(f"found {places} places, expected at least 1")
        self.env = env
        self.free = places
        self.waits_ps: list[int] = []
        self.busy_ps = 0
        self._queue: deque[tuple[int, Service, Done]] = deque()
        self._serving = False

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    def submit(self, service_ps: Service, on_done: Done) -> None:
        """Queue a job and call `on_done` when it is done.

        Parameters
        ----------
        service_ps
            Time the job holds its place, or a function that is called when the job gets one, with the function
            that gives it back.
        on_done
            Called when the place is given back; jobs it submits queue behind those that wait already.
        """
        if not callable(service_ps) and service_ps < 0:
            raise ValueError(f"found a service of {service_ps} ps, expected at least 0")
        self._queue.append((int(self.env.now), service_ps, on_done))
        self._serve()

    def _serve(self) -> None:
        # A service that is over at once comes back here; the loop already running takes the next job.
        if self._serving:
            return
        self._serving = True
        while self.free and self._queue:
            self.free -= 1
            self._hold(*self._queue.popleft())
        self._serving = False

    def _hold(self, since_ps: int, service: Service, on_done: Done) -> None:
        start_ps = int(self.env.now)
        self.waits_ps.append(start_ps - since_ps)
        held = True

        def release(_: simpy.Event | None = None) -> None:
            nonlocal held
            if not held:
                raise InvariantError("a job gave its server back twice")
            held = False
            self.busy_ps += int(self.env.now) - start_ps
            on_done()
            self.free += 1
            self._serve()

        if callable(service):
            service(release)
        else:
            Call(self.env, release, int(service))


class ModeServer:
    """Something that works in one of two modes: any number of `shared` jobs at once, or one `exclusive` job alone.

    Jobs start in the order of arrival: a shared one does not overtake an exclusive one that waits.
    """

    def __init__(self) -> None:
        self.shared: Server = _Mode(self, alone=False)
        self.exclusive: Server = _Mode(self, alone=True)
        self._queue: deque[tuple[bool, Callable[[Done], object], Done]] = deque()
        self._running = 0
        self._alone = False

    def enter(self, service: Callable[[Done], object], on_done: Done, *, alone: bool) -> None:
        """Queue a job of a mode."""
        self._queue.append((alone, service, on_done))
        self._next()

    def _next(self) -> None:
        while self._queue and not self._alone and not (self._queue[0][0] and self._running):
            self._alone, service, on_done = self._queue.popleft()
            self._running += 1
            service(partial(self._leave, on_done))

    def _leave(self, on_done: Done) -> None:
        self._running -= 1
        self._alone = False
        on_done()
        self._next()


class _Mode:
    """One mode of a `ModeServer`, as a server."""

    def __init__(self, server: ModeServer, *, alone: bool) -> None:
        self._server, self._alone = server, alone

    def submit(self, service_ps: Service, on_done: Done) -> None:
        if not callable(service_ps):
            raise TypeError(f"found a service of {service_ps} ps, expected a function that is given its end")
        self._server.enter(service_ps, on_done, alone=self._alone)

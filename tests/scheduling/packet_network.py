"""A packet network to check the fluid one against: quanta through servers, a window of them per flow.

Every resource is a server of one quantum at a time, either first come, first served or deficit round robin
(Shreedhar and Varghese, SIGCOMM 1995). A flow keeps up to `window` quanta between its source and its end.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class PacketFlow:
    route: list
    nbytes: int
    window: int
    weight: float
    on_finish: object
    unsent: int = 0
    inside: int = 0
    finish_s: float = -1.0


@dataclass
class Server:
    capacity: float
    busy: bool = False
    fifo: deque = field(default_factory=deque)
    queues: dict = field(default_factory=dict)  # of each waiting flow, in the order of the round
    deficit: dict = field(default_factory=dict)


class PacketNetwork:
    def __init__(self, quantum: int, fair: bool):
        self.quantum = quantum
        self.fair = fair
        self.now = 0.0
        self.servers = {}
        self._events = []
        self._order = itertools.count()

    def resource(self, name, capacity):
        self.servers[name] = Server(capacity)
        return name

    def start(self, route, nbytes, on_finish, *, delay_s=0.0, window=8, weight=1.0):
        flow = PacketFlow(route, nbytes, window, weight, on_finish, unsent=nbytes)
        self._at(delay_s, self._inject, flow)
        return flow

    def run(self):
        while self._events:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)

    def _at(self, delay_s, action, *arguments):
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action, arguments))

    def _inject(self, flow):
        while flow.inside < flow.window and flow.unsent:
            nbytes = min(self.quantum, flow.unsent)
            flow.unsent -= nbytes
            flow.inside += 1
            self._arrive(flow, nbytes, 0)

    def _arrive(self, flow, nbytes, hop):
        if hop == len(flow.route):
            self._leave(flow)
            return
        server = self.servers[flow.route[hop][0]]
        if self.fair:
            server.queues.setdefault(flow, deque()).append((flow, nbytes, hop))
        else:
            server.fifo.append((flow, nbytes, hop))
        if not server.busy:
            self._serve(server)

    def _leave(self, flow):
        flow.inside -= 1
        if flow.unsent:
            self._inject(flow)
        elif not flow.inside:
            flow.finish_s = self.now
            flow.on_finish()

    def _serve(self, server):
        quantum = self._next_fair(server) if self.fair else (server.fifo.popleft() if server.fifo else None)
        server.busy = quantum is not None
        if quantum is not None:
            flow, nbytes, hop = quantum
            self._at(nbytes * flow.route[hop][1] / server.capacity, self._served, server, quantum)

    def _served(self, server, quantum):
        flow, nbytes, hop = quantum
        self._arrive(flow, nbytes, hop + 1)
        self._serve(server)

    def _next_fair(self, server):
        while server.queues:
            flow, queue = next(iter(server.queues.items()))
            if server.deficit.get(flow, 0.0) >= queue[0][1]:
                server.deficit[flow] -= queue[0][1]
                quantum = queue.popleft()
                if not queue:
                    del server.queues[flow], server.deficit[flow]
                return quantum
            # Not enough credit: on to the end of the round with that of the next one.
            server.deficit[flow] = server.deficit.get(flow, 0.0) + flow.weight * self.quantum
            del server.queues[flow]
            server.queues[flow] = queue
        return None

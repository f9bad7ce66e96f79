"""Workers in processes of their own, for tests: torch is imported once, and the processes are forked from there."""

import ctypes
import fcntl
import multiprocessing
import os
import socket
import struct
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from tests.support import forkserver

NEW_USER, NEW_NET = 0x10000000, 0x40000000  # of unshare(2)
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


class Workers:
    """Call ``function(collectives, *arguments)`` in ``size`` processes that form a group, and end them with the block.

    ``seconds`` is how long a worker may be silent; ``folder`` is empty at first. ``function`` and its arguments are
    pickled.
    """

    def __init__(
        self, size: int, folder: Path, function: Callable[..., Any], *arguments: Any, seconds: float = 30
    ) -> None:
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        context = _context()
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            with theirs:
                process = context.Process(
                    target=_work, args=(theirs, rank, size, str(folder / "store"), seconds, function, arguments)
                )
                process.start()
            self.processes.append(process)
            self.connections.append(ours)

    def result(self, rank: int, within: float = 60) -> Any:
        """Wait for what the worker's function returns, or the exception that it raises."""
        assert self.connections[rank].poll(within), f"worker {rank} said nothing for {within} s"
        return self.connections[rank].recv()

    def results(self) -> list[Any]:
        """Wait for the results of all workers; raise the first worker's exception, if there is any."""
        results = [self.result(rank) for rank in range(len(self.processes))]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in zip(self.processes, self.connections, strict=True):
            connection.close()
            process.kill()
            process.join()
            process.close()


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(*arguments)`` in a process whose network is its own loopback device; None if not allowed."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    with ExitStack() as stack:
        stack.callback(ours.close)
        with theirs:
            process = context.Process(target=_alone, args=(theirs, function, arguments))
            process.start()
        stack.callback(process.join)
        stack.callback(process.kill)
        result = ours.recv()
    if isinstance(result, BaseException):
        raise result
    return result


def bytes_on_loopback() -> int:
    """Count the bytes that the loopback device of this process's network has sent, with the headers of IP and TCP."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.lstrip().startswith("lo:"))
    return int(line.partition(":")[2].split()[8])


_is_alone = False  # in a process whose network others do not have


def _context() -> Any:
    """Return a context of processes in this network: of a server that has imported torch, or children of our own."""
    if _is_alone:
        return multiprocessing.get_context("fork")
    return forkserver.context()


def _work(
    connection: Connection,
    rank: int,
    size: int,
    store: str,
    seconds: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    from fishexp.distributed.torch_collectives import TorchCollectives

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
        )
        connection.send(function(TorchCollectives(seconds), *arguments))
        dist.destroy_process_group()
    except Exception as error:
        error.add_note(traceback.format_exc())
        connection.send(error)


def _alone(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _is_alone
    _is_alone = True
    libc = ctypes.CDLL(None)
    try:
        if libc.unshare(NEW_NET if os.geteuid() == 0 else NEW_NET | NEW_USER):
            connection.send(None)
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            name = struct.pack("16sh", b"lo", 0)
            (flags,) = struct.unpack("16xh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name))
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
        connection.send(function(*arguments))
    except Exception as error:
        error.add_note(traceback.format_exc())
        connection.send(error)

"""Functions in processes of their own, alone or in a group as torchrun makes one."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context('forkserver')  # imports torch once for all processes
_CONTEXT.set_forkserver_preload(['timm_se_plugin.training'])


def _run(function: Callable[..., None], arguments: tuple, environment: dict[str, str]) -> None:
    os.setpgrp()  # so that a signal to the group reaches this process and its workers alone
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def start(function: Callable[..., None], *arguments: Any, **environment: str) -> Any:
    """Start a function of an importable module in a process of its own, with additions to the environment."""
    process = _CONTEXT.Process(target=_run, args=(function, arguments, environment))
    process.start()
    return process


def start_group(function: Callable[..., None], *of_processes: tuple) -> list[Any]:
    """Start a function in as many processes as there are tuples of arguments, which find each other."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    group = {'WORLD_SIZE': str(len(of_processes)), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
             'GLOO_SOCKET_IFNAME': 'lo'}
    return [start(function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **group)
            for rank, arguments in enumerate(of_processes)]


def finish(process: Any) -> int:
    """Exit code of a process, negative for the signal that ended it."""
    process.join(120)
    assert process.exitcode is not None, 'the process hangs'
    return process.exitcode

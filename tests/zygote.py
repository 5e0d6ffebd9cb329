"""Runs scripts and the command line in processes of their own without paying for the imports each time.

Started once; reads one JSON request a line and answers with one line:

    {"module": NAME or "script": PATH, "arguments": [...], "environment": {...}, "output": PATH, "kill": [SIGNAL, N],
     "largest_file": BYTES, "starve": N}
                    forks a process that runs it as `python -m` would; answers its process id. With "kill" the process
                    sends its whole group the signal when it is about to take its N-th optimizer step; signal 0: it
                    leaves with status 0. With "largest_file" no file of it grows beyond, as on a full disk. With
                    "starve" it finds no memory in its N-th step, once the gradient is computed.
    {"wait": PID}   answers the exit status as a shell would say it, minus the signal's number where one killed it.
"""

import json
import os
import resource
import runpy
import subprocess
import sys
import traceback

import open_clip  # noqa: F401  the imports that cost seconds
import torch
import torch._dynamo
import torchvision  # noqa: F401

import foveate.data.loader
import foveate.engine.fit as fit_module
import foveate.train.distill
import foveate.train.fvit  # noqa: F401


def kill_at(number: int, count: int) -> None:
    """Send this process and its workers a signal in the middle of the `count`-th step: before the parameters move."""
    take_step, calls = fit_module.take_step, 0

    def watched(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and number == 0:
            os._exit(0)
        if calls == count:
            command = (
                f"kill -{int(number)} -{os.getpgid(0)}"  # from outside: torch's workers know their parent's signals
            )
            subprocess.run(["sh", "-c", command], start_new_session=True, check=True)
        take_step(*args, **kwargs)

    fit_module.take_step = watched


def starve_at(count: int) -> None:
    """Let a GPU's memory run out in the `count`-th step, before the processes compare their gradients."""
    gradient_norm, calls = fit_module.gradient_norm, 0

    def starved(trained):
        nonlocal calls
        calls += 1
        if calls == count:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient_norm(trained)

    fit_module.gradient_norm = starved


def run_child(request: dict) -> int:
    """Be the requested process; its exit status."""
    os.setsid()  # a process group of its own, as under a shell
    file = os.open(request["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request.get("environment", {}))
    torch.set_num_threads(1)
    if "largest_file" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], request["largest_file"]))
    if "kill" in request:
        kill_at(*request["kill"])
    if "starve" in request:
        starve_at(request["starve"])
    sys.argv = ["foveate", *request["arguments"]]
    try:
        if "module" in request:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            status = run_child(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(child, flush=True)
    os._exit(0)  # a tidy end of so many modules takes seconds


if __name__ == "__main__":
    main()

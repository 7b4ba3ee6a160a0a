"""A Dask scheduler and its workers, for `extract.engine: dask` and `bonafide sweep --engine dask`.

Both end with this command (Ctrl-C).

    python docs/start_cluster.py local --workers 2
    python docs/start_cluster.py cuda
    python docs/start_cluster.py slurm --workers 8 --partition gpu --walltime 12:00:00 --interface ib0

`local` starts workers on this machine, to try it. `cuda` starts one for each GPU of this machine, by dask-cuda. `slurm`
submits jobs with one worker and one GPU each, by dask-jobqueue; the scheduler runs where this command does. Neither
package comes with this project: see docs/cluster.md. Run it in the project's folder.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
from pathlib import Path
from typing import Any

THREADS = {"local": 1, "cuda": 2, "slurm": 2}  # in extraction one decodes and writes while a GPU computes for the other


def local(args: argparse.Namespace) -> Any:
    """Workers on this machine, which share its processors."""
    from distributed import LocalCluster

    share = max(1, len(os.sched_getaffinity(0)) // args.workers)
    return LocalCluster(n_workers=args.workers, env={"OMP_NUM_THREADS": str(share)}, **_here(args))


def cuda(args: argparse.Namespace) -> Any:
    """A worker for each GPU of this machine, or for those that CUDA_VISIBLE_DEVICES names."""
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(**_here(args))


def _here(args: argparse.Namespace) -> dict[str, Any]:
    """What workers on this machine have in common: nobody outside it can reach them."""
    return {
        "host": "127.0.0.1",
        "scheduler_port": args.port,
        "dashboard_address": "127.0.0.1:0",
        "threads_per_worker": args.threads,
        "memory_limit": 0,
        "silence_logs": logging.ERROR,
    }


def slurm(args: argparse.Namespace) -> Any:
    """Jobs with one worker and one GPU each."""
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(
        queue=args.partition,
        account=args.account,
        walltime=args.walltime,
        cores=args.threads,  # of Dask, which are tasks at once
        processes=1,
        job_cpu=args.cpus,
        memory=args.memory,
        interface=args.interface,
        job_extra_directives=[f"--gres={args.gres}"] if args.gres else [],
        job_script_prologue=[
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"export OMP_NUM_THREADS={max(1, args.cpus // args.threads)}",
        ],
        log_directory="data/slurm",
        scheduler_options={"port": args.port, "dashboard_address": ":0"},
    )
    print(cluster.job_script())
    cluster.scale(jobs=args.workers)
    return cluster


def main() -> None:
    """Start them, say what to write into params.yaml, and wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=THREADS)
    parser.add_argument("--workers", type=int, default=2, help="how many: of this machine, or jobs")
    parser.add_argument("--threads", type=int, help="of a worker: shards or processes at once (1, or 2 with a GPU)")
    parser.add_argument("--port", type=int, default=8786, help="of the scheduler, 0 for any that is free")
    parser.add_argument("--partition", help="SLURM's, of machines with GPUs")
    parser.add_argument("--account", help="SLURM's")
    parser.add_argument("--walltime", default="12:00:00", help="of a job")
    parser.add_argument("--gres", default="gpu:1", help="what a job needs; empty for none")
    parser.add_argument("--cpus", type=int, default=8, help="of a job: they decode, or compute where there is no GPU")
    parser.add_argument("--memory", default="64GB", help="of a job, in which several shards must fit")
    parser.add_argument("--interface", help="the network that scheduler and workers share, such as ib0")
    args = parser.parse_args()
    args.threads = args.threads or THREADS[args.kind]
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background of a shell, too
        signal.signal(number, signal.default_int_handler)
    try:
        with {"local": local, "cuda": cuda, "slurm": slurm}[args.kind](args) as cluster:
            print("waiting for the first worker", flush=True)
            cluster.wait_for_workers(1)
            print(f"extract:\n  engine: dask\n  scheduler: {cluster.scheduler_address}", flush=True)
            while True:
                signal.pause()
    except ImportError as error:
        raise SystemExit(f"error: {error}; docs/cluster.md says what to install") from None
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()

"""All benchmarks, one process each: their JSON lines on standard output and in bench.jsonl, and a table at the end.

    python benchmarks/run.py [--data shared/coco] [--gpu] [--only account step_exact] [--out bench.jsonl]

Without `--gpu` the rows a CPU can say something about, at sizes that take under ten minutes on two cores. With it the
rows of a GPU, B/16 at 1024 and L/14 at 896 in bfloat16. The exit status is 1 where a benchmark failed; a target that is
not reached is not a failure.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEP = ("--size", "512", "--batch", "2", "--crops", "6", "--repeats", "1")
CPU = [
    ("account", "--precision", "bfloat16"),
    ("account", "--precision", "bfloat16", "--model", "EVA02-L-14-336", "--size", "896"),
    ("account", "--precision", "bfloat16", "--model", "ViT-B-16-quickgelu"),
    ("data_feed", "--images", "48"),
    ("data_feed", "--images", "32", "--model", "EVA02-L-14-336", "--size", "896"),
    ("ddp", "--size", "224", "--batch", "2", "--crops", "2"),
    ("teacher", "--batch", "2", "--crops", "8"),
    ("teacher", "--batch", "2", "--crops", "8", "--model", "ViT-B-16-quickgelu"),
    ("step_exact", *STEP),
    ("step_valid", *STEP),
    ("peak_memory", *STEP),
    ("eval_regions", "--size", "512", "--images", "2", "--repeats", "1"),
    ("dense_infer", "--size", "512", "--repeats", "2"),
    ("dense_infer", "--size", "512", "--repeats", "2", "--model", "ViT-B-16-quickgelu"),
    ("recipe_time", "--size", "512", "--batch", "2", "--crops", "6", "--repeats", "1"),
    ("detector",),
    ("segmentation", "--repeats", "0"),
]
MODELS = (("--model", "EVA02-B-16", "--size", "1024"), ("--model", "EVA02-L-14-336", "--size", "896"))
ON_GPU = ("--device", "cuda", "--precision", "bfloat16", "--repeats", "10")
GPU = [
    (row, *model, "--batch", batch, "--crops", "13", *ON_GPU, *more)
    for model in MODELS
    for row, batch, more in (
        ("teacher", "16", ()),
        ("teacher", "16", ("--compile",)),
        ("step_exact", "2", ()),
        ("step_exact", "2", ("--compile",)),
        ("step_exact", "8", ("--compile",)),
        ("step_valid", "8", ()),
        ("peak_memory", "8", ()),
        ("dense_infer", "8", ("--compile",)),
        ("eval_regions", "8", ("--images", "64")),
        ("recipe_time", "2", ()),
        ("recipe_time", "2", ("--tokens", "valid")),
        ("detector", "8", ()),
        ("segmentation", "1", ()),
    )
]


def run(row: tuple[str, ...], data: Path | None) -> dict[str, Any]:
    """Run one benchmark; its line, with the wall seconds it took, or what it said when it failed."""
    command = [sys.executable, str(HERE / f"{row[0]}.py"), *row[1:]]
    command += [] if data is None else ["--data", str(data)]
    start = time.perf_counter()
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # else waiting threads count as CPU seconds
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    took = round(time.perf_counter() - start, 1)
    if done.returncode:
        return {"row": row[0], "command": " ".join(row), "failed": done.stderr[-1000:], "took": took}
    return {**json.loads(done.stdout.splitlines()[-1]), "command": " ".join(row), "took": took}


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = ["| row | model, size, batch | ours | plain | ratio | target | reached |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        if "failed" in line:
            rows.append(f"| {line['command']} | failed | | | | | |")
            continue
        how = f"{line['model']}, {line['size']}, {line['batch']}" + (", compiled" if line["compile"] else "")
        numbers = [line.get(name) for name in ("ours", "plain", "ratio")]
        shown = " | ".join("-" if one is None else f"{one:.4g}" for one in numbers)
        reached = {True: "yes", False: "no", None: line.get("note", "-")}[line["reached"]]
        rows.append(f"| {line['row']} | {how} | {shown} | {line['target']} | {reached} |")
        if "ratios" in line:  # account has four
            for name, limit in line["limits"].items():
                share = line["ratios"][name]
                rows.append(f"| - {name} | | | | {share:.4g} | <= {limit:g} | {'yes' if share <= limit else 'no'} |")
    return "\n".join(rows)


def main() -> int:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO root with panoptic annotations; default: images made here")
    parser.add_argument("--gpu", action="store_true", help="the rows of a GPU instead of a CPU's")
    parser.add_argument("--only", nargs="+", help="these rows alone")
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"), help="file of the lines")
    options = parser.parse_args()
    lines = []
    with options.out.open("w") as out:
        for row in GPU if options.gpu else CPU:
            if options.only and row[0] not in options.only:
                continue
            lines.append(run(row, options.data))
            print(json.dumps(lines[-1]), flush=True)
            out.write(json.dumps(lines[-1]) + "\n")
            out.flush()
    print(table(lines))
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())

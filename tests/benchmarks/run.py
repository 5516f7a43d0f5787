"""SFT, reward model and PPO of this project and of TRL, in turns on the same work; medians, ratios, peak memory.

make bench
.venv/bin/python -m tests.benchmarks.run --stages ppo --rounds 5 --json figures.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import ours
from tests.benchmarks.process import HOUSE, Ended, Line, run

HERE = Path(__file__).resolve().parent
STAGES = ("sft", "rm", "ppo")
Round = dict[str, dict[str, Line]]  # stage -> side -> figures
# Names in the table: (name, figure, unit, target of ours divided by TRL's, whether more is better).
ROWS: dict[str, list[tuple[str, str, str, float | None, bool]]] = {
    "sft": [("tokens", "tokens_per_s", "tokens/s", 1.3, True)],
    "rm": [("pairs", "samples_per_s", "pairs/s", 1.3, True), ("tokens", "tokens_per_s", "tokens/s", None, True)],
    "ppo": [
        ("whole iteration", "tokens_per_s", "tokens/s", 2.0, True),
        ("generation alone", "generated_tokens_per_s", "tokens/s", 1.5, True),
        ("generation", "generation_s", "s/iteration", None, False),
        ("scoring", "scoring_s", "s/iteration", None, False),
        ("update", "update_s", "s/iteration", None, False),
    ],
}
BOTH = [
    ("peak RSS", "peak_rss_mib", "MiB", 1.0, False),
    ("start to first step", "first_step_s", "s", None, False),
]


def main() -> None:
    options = arguments()
    peer_python = options.peer_python or make_peer()
    with tempfile.TemporaryDirectory(prefix="kubealign-bench-") as scratch:
        workload = Path(scratch) / "workload"
        make = [sys.executable, "-m", "tests.benchmarks.workload", "--output", str(workload)]
        make += ["--data-root", options.data_root, "--steps", str(options.steps)]
        run([*make, "--iterations", str(options.iterations)], options.threads)
        rounds = [one_round(number, workload, peer_python, options) for number in range(options.rounds)]
        lengths = json.loads((workload / "lengths.json").read_text(encoding="utf-8"))
        extras = [] if options.no_extras else look_inside(workload, peer_python, options)
    table = summary(rounds, options.stages, options.quiet)
    print_table(table, lengths, extras, options)
    if options.json:
        made = {"settings": {k: str(v) for k, v in vars(options).items()}, "lengths": lengths, "extras": extras}
        Path(options.json).write_text(json.dumps(made | {"table": table, "rounds": rounds}, indent=1), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=24, help="of SFT and reward model, warm-up included")
    parser.add_argument("--iterations", type=int, default=7, help="of PPO, warm-up included")
    parser.add_argument("--warmup", type=int, default=4, help="steps left out; for PPO one iteration is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", default=os.environ.get("KUBEALIGN_DATA", str(HOUSE.parent / "shared" / "data")))
    parser.add_argument("--peer-python", default="", help="a Python with peer-requirements.txt; made when not given")
    parser.add_argument("--quiet", type=float, default=0.2, help="cores that others may use; else a run is repeated")
    parser.add_argument("--attempts", type=int, default=3, help="runs at most where others keep the machine busy")
    parser.add_argument("--settings", type=json.loads, default={}, help='ours, as JSON: {"sft": {"epochs": 2}}')
    parser.add_argument("--no-extras", action="store_true", help="leave out data loading and checkpoints")
    parser.add_argument("--json", default="", help="write every figure to this file")
    options = parser.parse_args()
    if options.steps <= options.warmup or options.iterations < 2:
        parser.error("nothing is left after the warm-up; give more steps")
    return options


def make_peer() -> str:
    """The peer's own virtual environment, with the pinned versions; quick where it is there already."""
    folder = Path(os.environ.get("KUBEALIGN_PEER", HOUSE / ".cache" / "peer"))
    uv, python = str(Path(sys.executable).with_name("uv")), folder / "bin" / "python"
    if not python.exists():
        run([uv, "venv", "-q", "--python", sys.executable, str(folder)], 1)
    run([uv, "pip", "install", "-q", "--python", str(python), "-r", str(HERE / "peer-requirements.txt")], 1)
    return str(python)


def one_round(number: int, workload: Path, peer_python: str, options: argparse.Namespace) -> Round:
    """Both sides of every stage, the peer first in even rounds and ours in odd ones."""
    sides: dict[str, Callable[[str], Line]] = {
        "peer": lambda stage: peer_figures(stage, workload, peer_python, options),
        "ours": lambda stage: our_figures(stage, workload, options),
    }
    made = {}
    for stage in options.stages:
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        found = {side: undisturbed(sides[side], stage, options) for side in order}
        check_same_work(stage, found["ours"], found["peer"])
        made[stage] = found
        speeds = {side: round(line["tokens_per_s"]) for side, line in found.items()}
        print(f"round {number + 1}, {stage}: ours {speeds['ours']}, TRL {speeds['peer']} tokens/s", file=sys.stderr)
    return made


def undisturbed(side: Callable[[str], Line], stage: str, options: argparse.Namespace) -> Line:
    """The run beside which others kept the machine least busy: the first that is quiet enough, of a few attempts."""
    attempts: list[Line] = []
    while len(attempts) < options.attempts:
        attempts.append(side(stage))
        if attempts[-1]["others_cores"] <= options.quiet:
            break
        print(f"{stage}: others kept {attempts[-1]['others_cores']:.2f} cores busy meanwhile", file=sys.stderr)
    return min(attempts, key=lambda attempt: attempt["others_cores"])


def our_figures(stage: str, workload: Path, options: argparse.Namespace) -> Line:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        uri = ours.prepare(stage, workload, output, steps_of(stage, options), settings=options.settings.get(stage))
        ended = run([sys.executable, "-m", f"components.{ours.STEPS[stage]}", "--spec", uri], options.threads)
        return figures(stage, ours.line_of(stage, output), ended, options.warmup)


def peer_figures(stage: str, workload: Path, python: str, options: argparse.Namespace) -> Line:
    ended = run(peer_command(stage, workload, python, steps_of(stage, options)), options.threads)
    return figures(stage, result_of(ended), ended, options.warmup)


def peer_command(stage: str, workload: Path, python: str, steps: int) -> list[str]:
    return [python, str(HERE / "peer.py"), "--stage", stage, "--workload", str(workload), "--steps", str(steps)]


def steps_of(stage: str, options: argparse.Namespace) -> int:
    return options.iterations if stage == "ppo" else options.steps


def result_of(ended: Ended) -> Line:
    """What a program printed after RESULT."""
    return json.loads(ended.output.rpartition("RESULT ")[2])


def figures(stage: str, line: Line, ended: Ended, warmup: int) -> Line:
    """Speeds over the wall clock from the end of the warm-up's last step to the end of the last step of all."""
    first = 1 if stage == "ppo" else warmup
    ends, size = line["step_ends"], ours.PPO_BATCH if stage == "ppo" else ours.BATCH
    seconds, steps = ends[-1] - ends[first - 1], len(ends) - first
    made: Line = {
        "tokens_per_s": sum(line["tokens"][first:]) / seconds,
        "samples_per_s": steps * size / seconds,
        "first_step_s": ends[0] - ended.started,
        "peak_rss_mib": ended.peak_rss_bytes / 2**20,
        "others_cores": ended.others_cores,
        "tokens": line["tokens"],
        "losses": line["losses"],
    }
    for phase in ("generation", "scoring", "update"):
        if line.get(f"{phase}_seconds"):
            made[f"{phase}_s"] = sum(line[f"{phase}_seconds"][first:]) / steps
    if "generation_s" in made:
        made["generated_tokens_per_s"] = sum(line["response_tokens"][first:]) / steps / made["generation_s"]
    return made


def check_same_work(stage: str, mine: Line, peer: Line) -> None:
    """SFT and reward model must have seen the same tokens at every step and come to the same losses.

    PPO cannot: the two sample different responses.
    """
    if stage == "ppo":
        return
    if mine["tokens"] != peer["tokens"]:
        raise SystemExit(f"{stage}: not the same batches, ours {mine['tokens']} and the peer's {peer['tokens']}")
    mine["loss_difference"] = max(abs(a - b) for a, b in zip(mine["losses"], peer["losses"], strict=True))
    if mine["loss_difference"] > 0.02:
        raise SystemExit(f"{stage}: not the same training, losses {mine['losses']} and the peer's {peer['losses']}")


def look_inside(workload: Path, peer_python: str, options: argparse.Namespace) -> list[str]:
    """Data loading and checkpoints, one number each, by runs apart from the timed ones."""
    lines = []
    for stage in (stage for stage in ("sft", "ppo") if stage in options.stages):
        steps, every = (options.warmup + 8, 3) if stage == "sft" else (4, 1)
        command = [sys.executable, "-m", "tests.benchmarks.inside", "--stage", stage, "--workload", str(workload)]
        command += ["--steps", str(steps), "--warmup", "1", "--checkpoint-every", str(every)]
        command += ["--settings", json.dumps(options.settings.get(stage, {}))]
        mine = result_of(run(command, options.threads))
        lines.append(
            f"{stage}, ours: data loading {mine['data_loading_share']:.2%} of a step's time; a checkpoint holds "
            f"training up for {mine['checkpoint_blocking_seconds']:.3f} s, "
            f"then is written beside it in {mine['checkpoint_write_seconds']:.3f} s"
        )
    if "sft" in options.stages:
        steps = options.warmup + 8
        command = [*peer_command("sft", workload, peer_python, steps), "--checkpoint-every", "3"]
        peer = result_of(run(command, options.threads))
        first, ends = options.warmup, peer["step_ends"]
        share = sum(peer["loading_seconds"][first:]) / (ends[-1] - ends[first - 1])
        seconds = statistics.median(peer["checkpoint_seconds"])
        lines.append(
            f"sft, TRL: data loading {share:.2%} of a step's time; a checkpoint holds training up for {seconds:.3f} s"
        )
    return lines


def summary(rounds: list[Round], stages: list[str], quiet: float) -> list[Line]:
    """A row for every figure of every stage that a side has; of quiet runs, where there are any."""
    table = []
    for stage in stages:
        runs = {side: quiet_runs([found[stage][side] for found in rounds], quiet) for side in ("ours", "peer")}
        counted = " + ".join(str(len(found)) for found in runs.values())
        disturbed = any(run["others_cores"] > quiet for found in runs.values() for run in found)
        for name, key, unit, target, more_is_better in ROWS[stage] + BOTH:
            sides = {side: [run[key] for run in found if key in run] for side, found in runs.items()}
            row: Line = {"stage": stage, "name": name, "unit": unit, "target": target, **sides}
            row |= {"runs": counted + (" disturbed" if disturbed else "")}
            row["ratio"] = None
            if sides["ours"] and sides["peer"]:
                ratio = row["ratio"] = statistics.median(sides["ours"]) / statistics.median(sides["peer"])
                row["met"] = target is None or (ratio >= target if more_is_better else ratio <= target)
            table.append(row)
    return table


def quiet_runs(runs: list[Line], quiet: float) -> list[Line]:
    """Those that others did not disturb, chosen without a look at their speed; all where no run was quiet."""
    return [run for run in runs if run["others_cores"] <= quiet] or runs


def print_table(table: list[Line], lengths: Line, extras: list[str], options: argparse.Namespace) -> None:
    print(
        f"median (least to most) of {options.rounds} rounds, {options.threads} threads, fp32; ratio = ours / TRL 1.12.0"
    )
    print(f"{'':26}{'unit':13}{'ours':28}{'TRL':28}{'runs':16}{'ratio':8}target")
    for row in table:
        sign = ">=" if row["target"] and row["name"] != "peak RSS" else "<="
        target = f"{sign} {row['target']}{'' if row.get('met') else ', missed'}" if row["target"] else ""
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        label = f"{row['stage']} {row['name']}"
        print(
            f"{label:26}{row['unit']:13}{spread(row['ours']):28}{spread(row['peer']):28}{row['runs']:16}{ratio:8}{target}"
        )
    print(
        f"runs: of ours + of TRL's, of {options.rounds} each; those beside which others kept more than {options.quiet} "
        "cores busy are left out, and where none is quiet the stage is marked disturbed: its speeds mean nothing"
    )
    for line in extras:
        print(line)
    for stage in options.stages:
        row = lengths[stage]
        print(
            f"{stage} rows: mean {row['mean']:.0f} tokens, at 10 / 50 / 90 % {row['p10']:.0f} / {row['p50']:.0f} / "
            f"{row['p90']:.0f}; a batch padded to its longest row is {row['padding']:.0%} padding"
        )


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 0 if min(values) >= 100 else 2
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()

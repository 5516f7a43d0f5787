"""Whole runs through the real command line, kfp.local, launcher and torchrun, over steps that only take a moment."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.house import STEPS, House, wait_for_end


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def house(shared_house: House) -> House:
    """The shared one, behaving well again whatever the test before asked of it (tests run in any order)."""
    shared_house.behave()
    return shared_house


@pytest.fixture
def fresh(tmp_path: Path) -> House:
    return House(tmp_path)


def only_run(house: House) -> Path:
    (folder,) = (house.root / "runs").iterdir()
    return folder


def attempts(house: House) -> dict[str, int]:
    return {step: json.loads((only_run(house) / step / "spec.json").read_text())["attempt"] for step in STEPS}


def test_run_goes_to_the_report_and_a_repeated_one_skips_everything(house: House) -> None:
    code, out, err = house.run("run", "-p", str(house.profile))
    assert (code, err) == (0, "")
    assert all(f"{step}: done after" in out for step in STEPS)
    assert "ground truth, sft  0.500  [0.400, 0.600]" in out
    assert out.rstrip().endswith("report.html")
    first = {step: (only_run(house) / step / "result.json").read_bytes() for step in STEPS}

    code, out, _ = house.run("run", "-p", str(house.profile))
    assert code == 0
    assert "all steps are already done" in out
    assert {step: (only_run(house) / step / "result.json").read_bytes() for step in STEPS} == first

    # Without its result, the pipeline runs, and only evaluate has something to do.
    (only_run(house) / "evaluate" / "result.json").unlink()
    code, out, _ = house.run("run", "-p", str(house.profile))
    assert code == 0
    assert "sft: already done" in out
    assert "evaluate: done after" in out

    code, out, _ = house.run("report", "--json")
    assert code == 0
    assert json.loads(out)["ground_truth"]["sft"]["value"] == 0.5
    code, out, _ = house.run("runs")
    assert out.splitlines()[1].split()[1:3] == ["done", "small"]
    spec = json.loads((only_run(house) / "data_prep" / "spec.json").read_text())
    shard = json.loads((only_run(house) / "data_shards" / "2-of-2" / "spec.json").read_text())
    assert shard["config"] == {**spec["config"], "shard": "2/2"} and spec["config"]["shard"] is None
    assert shard["inputs"].items() <= spec["inputs"].items() and shard["input_digests"]["base_model"]
    assert [uri.split("/")[-3:] for name, uri in spec["inputs"].items() if "shard" in name] == [
        ["2-of-2", "output", "shard"] if last else ["1-of-2", "output", "shard"] for last in (False, True)
    ]
    artifacts = list((only_run(house) / "kfp").glob("*/evaluate/report"))
    assert artifacts
    assert artifacts[0].read_text() == "<h1>report</h1>"


def test_failing_step_is_named_with_its_reason_and_the_rest_does_not_run(fresh: House) -> None:
    fresh.behave(base_model="user_error")
    code, out, err = fresh.run("run", "-p", str(fresh.profile))
    log = only_run(fresh) / "log.txt"
    assert code == 1
    assert err == f"error: base_model: sft.jsonl: the data is empty; give it rows; log: {log}\n"
    assert "base_model: failed" in out
    assert "data_prep" not in out
    assert not (only_run(fresh) / "data_prep").exists()
    fresh.behave(data_prep="user_error")
    code, _, err = fresh.run("run", "-p", str(fresh.profile))
    assert code == 1 and err.startswith("error: data_shards/") and "-of-2: sft.jsonl: the data is empty" in err
    assert not (only_run(fresh) / "data_prep").exists()
    # A step that needs nothing of the one that failed does not run either; the last task always does.
    fresh.behave(sft="retryable")
    code, _, err = fresh.run("run", "-p", str(fresh.profile))
    assert code == 75
    assert err == f"error: sft: the store cannot be reached; try again; log: {log}\n"
    assert not (only_run(fresh) / "pmp").exists()
    assert len(list((only_run(fresh) / "kfp").glob("*/clean-up/executor_output.json"))) == 3


def test_ctrl_c_stops_the_step_in_good_order_and_says_how_to_resume(fresh: House) -> None:
    fresh.hang("base_model")
    process = fresh.start("run", "-p", str(fresh.profile))
    worker = fresh.wait_until_hanging("base_model")

    # Meanwhile nobody else may run it.
    code, _, err = fresh.run("run", "-p", str(fresh.profile))
    assert code == 1
    assert "is being run by another process" in err

    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    run = only_run(fresh)
    assert process.returncode == 143
    command = f"kubealign run --resume {run.name} --root {fresh.root}"
    assert err == f"error: run {run.name} was stopped; go on with `{command}`\n"
    wait_for_end(worker)
    assert (fresh.folder / "orderly-base_model").exists()
    assert (run / "base_model" / "checkpoints" / "step-3").exists()
    assert json.loads((run / "state.json").read_text())["state"] == "cancelled"

    fresh.behave()
    code, _out, err = fresh.run("run", "--resume", run.name)
    assert (code, err) == (0, "")
    assert attempts(fresh) == {step: int(step == "base_model") for step in STEPS}


def test_nothing_trains_on_when_the_command_line_is_killed(fresh: House) -> None:
    fresh.hang("base_model")
    process = fresh.start("run", "-p", str(fresh.profile))
    worker = fresh.wait_until_hanging("base_model")
    process.kill()
    process.communicate()
    wait_for_end(worker)
    assert (fresh.folder / "orderly-base_model").exists()


def test_step_by_itself_maps_the_exit_code_and_prints_its_outputs(house: House, tmp_path: Path) -> None:
    def step(name: str, *more: str) -> tuple[int, str, str]:
        return house.run("step", name, "-p", str(house.profile), "--output", str(tmp_path / name), *more)

    house.behave()
    code, out, _ = step("data_prep")
    assert code == 0
    assert f"sft: {tmp_path}/data_prep/output/sft" in out
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("{}")
    code, out, err = step("evaluate", "--input", f"comparisons={rows}", "--input", f"x={tmp_path}/data_prep/output/sft")
    assert code == 0, err
    house.behave(evaluate="retryable")
    code, _, err = step("evaluate", "--seed", "3")
    assert code == 75
    assert err.splitlines()[-1] == "error: the store cannot be reached; try again"


def test_real_torchrun_with_two_ranks_of_which_one_is_killed(tmp_path: Path) -> None:
    house = House(tmp_path, torchrun=True)
    house.behave(sft="killed")
    arguments = ["-p", str(house.profile), "--output", str(tmp_path / "sft")]
    code, _, err = house.run("step", "sft", *arguments)
    assert code == 1
    assert "signal 9" in err.splitlines()[-1]
    assert not any(marked(tmp_path / "sft"))
    house.behave()
    code, out, _ = house.run("step", "sft", *arguments)
    assert code == 0
    assert out.splitlines()[-1] == f"model: {tmp_path}/sft/output/model"


def marked(output: Path) -> list[str]:
    """Processes of the step with this output that are still there."""
    marker = f"KUBEALIGN_TERMINATION_LOG={output / 'termination.log'}".encode()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def test_run_in_an_s3_store(fresh: House, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEALIGN_WORK", str(tmp_path / "scratch"))
    root = f"s3://{s3_bucket}/team"
    fresh.behave(data_prep="retryable")
    code, out, err = fresh.run("run", "-p", str(fresh.profile), "--root", root)
    assert (code, "-of-2: the store cannot be reached" in err) == (75, True), err
    run = out.split()[1].rstrip(",")
    fresh.behave()
    code, out, err = fresh.run("run", "--resume", run, "--root", root)
    assert (code, err) == (0, "")
    assert "base_model: already done" in out
    assert out.rstrip().endswith(f"{root}/runs/{run}/evaluate/output/report/report.html")
    code, out, _ = fresh.run("runs", "--root", root)
    assert out.splitlines()[1].split()[:3] == [run, "done", "small"]
    code, out, _ = fresh.run("report", run, "--root", root, "--json")
    assert json.loads(out)["ground_truth"]["sft"]["value"] == 0.5

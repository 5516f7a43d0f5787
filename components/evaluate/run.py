"""The work of the step: measure, draw, write report.html, report.json and answers.jsonl."""

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from components.core.config import EvaluateConfig
from components.core.step import Step, peak_rss, versions
from components.evaluate.figures import Findings, build_figures
from components.evaluate.inputs import Inputs, read_inputs
from components.evaluate.policies import Policies, run_policies, score_rewards
from components.evaluate.preferences import Judge, judge_sets
from components.evaluate.report import primary_set, render_report
from components.evaluate.run_records import read_run

log = logging.getLogger(__name__)


def work(step: Step) -> None:
    """Policies, then judges, then the page; one model is in memory at a time."""
    started = time.time()
    config: EvaluateConfig = step.config
    inputs = read_inputs(step)
    findings = measure(inputs, config, step.spec.seed)
    findings.records = read_run(step.spec.inputs.get("run"))
    figures = build_figures(findings, config, run=step.spec.run, seed=step.spec.seed)
    figures["headline_set"] = primary_set(figures)
    figures["steps"]["evaluate"] = {"seconds": time.time() - started, "peak_rss_bytes": peak_rss()}
    records = findings.records.steps
    settings = {name: record.settings for name, record in records.items()} | {"evaluate": step.spec.config}
    page = render_report(figures, findings.policies, records, settings, versions(), config.conversations)
    folder = step.work / "report-scratch"
    write_output(folder, page, figures, findings.policies)
    step.finish({"report": folder}, metrics=figures)
    shutil.rmtree(folder, ignore_errors=True)
    log.info("the report is %s/report.html", step.output_uri("report"))


def measure(inputs: Inputs, config: EvaluateConfig, seed: int) -> Findings:
    """Run every model on everything there is for it."""
    findings = Findings(sets=inputs.sets, missing=inputs.missing)
    findings.policies = run_policies(inputs, config, seed) if inputs.policies else Policies()
    for name, folder in inputs.judges.items():
        judge = Judge(name, folder, config.batch_tokens)
        if inputs.sets:
            findings.judgements[name] = judge_sets(judge, inputs.sets)
        if name == "reward_model":
            score_rewards(findings.policies, judge)
    return findings


def write_output(folder: Path, page: str, figures: dict[str, Any], policies: Policies) -> None:
    """report.html, report.json, and every answer as a line of answers.jsonl."""
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(figures, indent=1, allow_nan=False), encoding="utf-8")
    if policies.answers:
        with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
            for name, answers in policies.answers.items():
                for item in answers:
                    prompt = policies.prompts[item.prompt]
                    line = {
                        "policy": name, "prompt": prompt.id, "sample": item.sample, "messages": prompt.messages,
                        "response": item.text, "tokens": len(item.ids), "truncated": item.truncated,
                        "reward": item.reward, "ground_truth": item.truth,
                    }  # fmt: skip
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

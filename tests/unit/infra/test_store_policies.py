"""The S3 policies against the store's own code: what a step does is allowed, what others do is denied.

A policy is rendered by Terraform and judged by a small evaluator, which knows the parts of IAM's language that these
policies use and refuses any other. The store's real code runs on a bucket in memory that asks it before each call.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from components.core import store, store_s3
from components.core.config import STEPS
from components.core.errors import UserError
from components.core.spec import StepSpec
from components.core.step import Step
from components.launch.run import launch
from tests.unit.infra.support import copy, needs_terraform, terraform

BUCKET = "our-models"
ARN = f"arn:aws:s3:::{BUCKET}"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/one"
ROOT = f"s3://{BUCKET}/team"
INPUTS = {"model": f"{ROOT}/runs/r/base_model/output/model"}
BESIDE_THE_LAUNCHER = ("data_prep", "annotate")
FILES = ("result.json", "metrics.jsonl", "checkpoints/step-1/MANIFEST.json", "output/model/weights")
NOT_THEIRS = ("s3:DeleteObjectVersion", "s3:PutBucketPolicy", "s3:DeleteBucket", "s3:PutLifecycleConfiguration")
pytestmark = needs_terraform

Document = dict[str, Any]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    """Policies by step, as Terraform renders them."""
    folder = copy(tmp_path_factory.mktemp("policies")) / "modules" / "policies"
    terraform(folder, "init", "-backend=false", "-input=false", "-no-color")
    given = {"bucket_arn": ARN, "kms_key_arn": KEY, "root": "team"}
    arguments = [f"-var={name}={value}" for name, value in given.items()]
    terraform(folder, "apply", "-auto-approve", "-input=false", "-no-color", *arguments)
    documents = json.loads(terraform(folder, "output", "-json", "documents").stdout)
    return {who: json.loads(text) for who, text in documents.items()}


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: * is any text, slashes too; ? is one character."""
    wild = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, text, re.DOTALL) is not None


def holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, expected in conditions.items():
        assert operator in ("StringLike", "StringEquals"), f"the evaluator does not know {operator}"
        for key, values in expected.items():
            values = [values] if isinstance(values, str) else values
            if key not in context:
                return False
            if operator == "StringEquals" and context[key] not in values:
                return False
            if operator == "StringLike" and not any(matches(value, context[key]) for value in values):
                return False
    return True


def allowed(document: Document, action: str, resource: str, **context: str) -> bool:
    """Whether IAM would let it pass: one statement allows, and none denies."""
    verdicts = set()
    for statement in document["Statement"]:
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        if (
            any(matches(pattern.lower(), action.lower()) for pattern in statement["Action"])
            and any(matches(pattern, resource) for pattern in statement["Resource"])
            and holds(statement.get("Condition", {}), context)
        ):
            verdicts.add(statement["Effect"])
    return verdicts == {"Allow"}


class Bucket:
    """A bucket in memory that asks a policy before each call; without one, all is allowed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.policy: Document | None = None
        self.calls: list[tuple[str, str]] = []

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str = "") -> dict[str, Any]:
        self._ask("s3:PutObject", Key, "kms:GenerateDataKey")
        self.objects[Key] = Body
        return {}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        self._ask("s3:GetObject", Key, "kms:Decrypt")
        return {"Body": io.BytesIO(self.objects[Key])}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, MaxKeys: int = 1000) -> dict[str, Any]:
        self.calls.append(("s3:ListBucket", Prefix))
        if self.policy and not allowed(self.policy, "s3:ListBucket", ARN, **{"s3:prefix": Prefix}):
            raise refused("ListObjectsV2")
        found = [key for key in sorted(self.objects) if key.startswith(Prefix)]
        return {"Contents": [{"Key": key, "Size": len(self.objects[key]), "ETag": '"x"'} for key in found]}

    def delete_objects(self, *, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        errors = []
        for key in [item["Key"] for item in Delete["Objects"]]:
            try:
                self._ask("s3:DeleteObject", key)
            except ClientError:
                errors.append({"Key": key, "Code": "AccessDenied"})
            else:
                self.objects.pop(key, None)
        return {"Errors": errors}

    def upload_file(self, path: str, bucket: str, key: str, extra: Any, callback: Any, config: Any) -> None:
        data = Path(path).read_bytes()
        if len(data) > config.multipart_threshold:  # as an upload in parts: begun, and here given up
            self._ask("s3:AbortMultipartUpload", key)
            self._ask("s3:PutObject", key, "kms:Decrypt")
        self.put_object(Bucket=bucket, Key=key, Body=data)

    def download_file(self, bucket: str, key: str, path: str, extra: Any, callback: Any, config: Any) -> None:
        Path(path).write_bytes(self.get_object(Bucket=bucket, Key=key)["Body"].read())

    def _ask(self, action: str, key: str, with_key: str = "") -> None:
        self.calls.append((action, key))
        if self.policy is None:
            return
        if not allowed(self.policy, action, f"{ARN}/{key}"):
            raise refused(f"{action} {key}")
        if with_key and not allowed(self.policy, with_key, KEY, **{"kms:EncryptionContext:aws:s3:arn": ARN}):
            raise refused(f"{with_key} {key}")


def refused(what: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDenied"}}, what)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """The store's S3 half on a bucket in memory, with a run's base model and raw data in it."""
    made = Bucket()
    monkeypatch.setattr(store_s3, "_make_client", lambda: made)
    monkeypatch.setenv("KUBEALIGN_WORK", str(tmp_path / "work"))
    store._s3_store.cache_clear()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    store.publish(folder, INPUTS["model"])
    made.objects["raw/rows.jsonl"] = b"{}\n"
    yield made
    store._s3_store.cache_clear()


class Cluster:
    """Runs a step as its job would: with its own policy, through every call that a step makes."""

    name = "pytorchjob"

    def __init__(self, bucket: Bucket, own: Document, launcher: Document) -> None:
        self.bucket, self.own, self.launcher = bucket, own, launcher

    def adopts(self, spec: StepSpec) -> bool:
        return False

    def run(self, spec: StepSpec) -> None:
        self.bucket.policy = self.own
        try:
            self._work(Step(StepSpec.model_validate_json(store.read_bytes(spec.uri))))
        finally:
            self.bucket.policy = self.launcher

    def _work(self, step: Step) -> None:
        step.restore_metrics()
        step.fetch_inputs()
        checkpoints = store.join(step.spec.output, "checkpoints")
        (step.work / "metrics.jsonl").write_text("{}\n")
        for number in (1, 2):
            folder = step.scratch("checkpoint")
            (folder / "state.safetensors").write_bytes(b"x" * (9 << 20))
            store.publish(folder, store.join(checkpoints, f"step-{number}", "rank-0"))
            step.save_metrics()
        assert list(store.open_store(checkpoints).list())
        store.delete(store.join(checkpoints, "step-1"))
        store.fetch(store.join(checkpoints, "step-2", "rank-0"), step.work / "read")
        store.delete(checkpoints)
        if step.spec.step == "annotate":
            store.write_bytes(store.join(step.spec.output, "journal.jsonl"), b"{}\n")
        folder = step.scratch("out")
        (folder / "weights").write_bytes(b"new")
        step.finish({"model": folder}, {})


@pytest.mark.parametrize("place", ["", "several/"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_and_its_launcher_may_do_all_that_they_do(
    step: str, place: str, policies: dict[str, Document], bucket: Bucket
) -> None:
    launcher = policies["launcher"]
    own = launcher if step in BESIDE_THE_LAUNCHER else policies[step]
    backend = Cluster(bucket, own, launcher)
    output = f"{ROOT}/runs/another/{place}{step}"
    bucket.policy = launcher
    for seed in (1, 1, 2):  # begun, found done, and begun anew over what is there
        launch(step, run="another", seed=seed, config={}, inputs=INPUTS, output=output, backend=backend)
    assert f"team/runs/another/{place}{step}/result.json" in bucket.objects
    parts = [key for action, key in bucket.calls if action == "s3:AbortMultipartUpload"]
    assert len(parts) == 4 and all(key.endswith("state.safetensors") for key in parts)


@pytest.mark.parametrize("step", BESIDE_THE_LAUNCHER)
def test_what_runs_beside_the_launcher_may_also_run_by_itself(
    step: str, policies: dict[str, Document], bucket: Bucket
) -> None:
    own = policies[step]
    backend = Cluster(bucket, own, own)
    bucket.policy = own
    for seed in (1, 2):
        output = f"{ROOT}/runs/another/{step}"
        launch(step, run="another", seed=seed, config={}, inputs=INPUTS, output=output, backend=backend)


@pytest.mark.parametrize("step", ["base_model", "data_prep", "evaluate", "annotate", "launcher"])
def test_who_takes_raw_data_may_list_and_read_it(step: str, policies: dict[str, Document], bucket: Bucket) -> None:
    bucket.policy = policies[step]
    place = store.open_store(f"s3://{BUCKET}/raw")
    assert [entry.key for entry in place.list()] == ["rows.jsonl"]
    assert store.exists(f"s3://{BUCKET}/raw/rows.jsonl") and store.read_bytes(f"s3://{BUCKET}/raw/rows.jsonl")
    assert not store.exists(f"s3://{BUCKET}/raw")
    with pytest.raises(UserError):
        store.write_bytes(f"s3://{BUCKET}/raw/rows.jsonl", b"changed")


@pytest.mark.parametrize("step", ["sft", "pmp", "reward_model", "ppo", "sample_responses", "publish"])
def test_who_takes_none_sees_no_raw_data(step: str, policies: dict[str, Document], bucket: Bucket) -> None:
    bucket.policy = policies[step]
    with pytest.raises(UserError):
        list(store.open_store(f"s3://{BUCKET}/raw").list())
    with pytest.raises(UserError):
        store.read_bytes(f"s3://{BUCKET}/raw/rows.jsonl")


def test_publish_alone_writes_models(policies: dict[str, Document], bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for who, policy in policies.items():
        bucket.policy = policy
        if who == "publish":
            assert store.publish(folder, f"{ROOT}/models/chat/1")
            continue
        with pytest.raises(UserError):
            store.publish(folder, f"{ROOT}/models/chat/2")
        for action in ("s3:PutObject", "s3:DeleteObject"):
            assert not allowed(policy, action, f"{ARN}/team/models/chat/1/weights"), who


def test_the_launcher_keeps_its_own_record_of_a_run(policies: dict[str, Document], bucket: Bucket) -> None:
    bucket.policy = policies["launcher"]
    for name in ("run.json", "state.json"):
        store.write_bytes(f"{ROOT}/runs/r/{name}", b"{}")
        assert store.exists(f"{ROOT}/runs/r/{name}")
    assert list(store.open_store(f"{ROOT}/runs").list())


@pytest.mark.parametrize("who", [*STEPS, "publish"])
@pytest.mark.parametrize("other", [*STEPS, "publish"])
def test_no_step_touches_another_s_folder(who: str, other: str, policies: dict[str, Document]) -> None:
    for name in ("spec.json", *FILES):
        for place in (other, f"several/{other}"):
            key = f"{ARN}/team/runs/r/{place}/{name}"
            mine = who == other and (name != "spec.json" or who in BESIDE_THE_LAUNCHER)
            for action in ("s3:PutObject", "s3:DeleteObject"):
                assert allowed(policies[who], action, key) == mine, (action, key)


@pytest.mark.parametrize("step", sorted({*STEPS, "publish"} - set(BESIDE_THE_LAUNCHER)))
def test_the_launcher_deletes_a_step_s_results_but_cannot_write_them(step: str, policies: dict[str, Document]) -> None:
    for name in FILES:
        key = f"{ARN}/team/runs/r/{step}/{name}"
        assert allowed(policies["launcher"], "s3:DeleteObject", key)
        assert not allowed(policies["launcher"], "s3:PutObject", key)


def test_nobody_reaches_beyond_the_store(policies: dict[str, Document]) -> None:
    for policy in policies.values():
        assert not allowed(policy, "s3:ListBucket", ARN, **{"s3:prefix": ""})
        assert not allowed(policy, "s3:ListBucket", ARN)
        assert not allowed(policy, "s3:ListBucket", ARN, **{"s3:prefix": "another-team/runs/"})
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert not allowed(policy, action, f"{ARN}/runs/r/sft/output/model/weights"), "outside of the root"
            assert not allowed(policy, action, "arn:aws:s3:::another-bucket/team/runs/r/sft/output/x")
        # Versions are what brings back what a step has deleted by mistake.
        for action in NOT_THEIRS:
            assert not allowed(policy, action, ARN)
            assert not allowed(policy, action, f"{ARN}/team/runs/r/sft/output/x")
        assert not allowed(policy, "kms:Decrypt", KEY, **{"kms:EncryptionContext:aws:s3:arn": "arn:aws:s3:::another"})


def test_the_evaluator_knows_denials_and_wildcards() -> None:
    statement = {"Sid": "a", "Effect": "Allow", "Action": ["s3:Get*"], "Resource": [f"{ARN}/runs/*/sft/?"]}
    document = {"Statement": [statement]}
    assert allowed(document, "s3:GetObject", f"{ARN}/runs/a/b/sft/x")
    assert not allowed(document, "s3:GetObject", f"{ARN}/runs/a/sft/xy")
    denial = {"Effect": "Deny", "Action": ["s3:*"], "Resource": ["*"]}
    assert not allowed({"Statement": [statement, denial]}, "s3:GetObject", f"{ARN}/runs/a/sft/x")

"""The chart as Helm itself renders it: what it makes, what it refuses, and that it says what the code understands."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import CHAIN, STEPS, Profile, load_profile
from components.core.spec import StepSpec
from components.launch.backend import TRAINING_STEPS
from components.launch.backends import _BESIDE_THE_LAUNCHER, NAMES
from components.launch.cluster.job import USER, Job
from components.launch.cluster.pytorchjob import PyTorchJob
from components.launch.cluster.settings import Settings
from components.launch.cluster.trainjob import TrainJob
from helm import generate
from pipelines import profiles
from tests.programs import CannotBuild, program

HOUSE = Path(__file__).resolve().parents[3]
CHART, INFRA = HOUSE / "helm" / "kubealign", HOUSE / "infra" / "kubernetes"
GOLDEN = HOUSE / "tests" / "golden" / "chart.yaml"
CASES = sorted(CHART.glob("ci/*.yaml"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ROOT = ("--set", "store.root=s3://bucket/prefix")
JOB_STEPS = (*TRAINING_STEPS, "evaluate")
Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def helm() -> Path:
    try:
        return program("helm")
    except CannotBuild as error:
        pytest.skip(f"no helm: {error}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # No kubeconfig and no plug-ins of this machine's: what is rendered depends on the chart alone.
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "HELM_NO_PLUGINS": "1"}
    command = [str(program("helm")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def text_of(*arguments: str, release: str = "kubealign") -> str:
    done = run("template", release, str(CHART), "-n", "training", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(*arguments: str, release: str = "kubealign") -> Objects:
    """(kind, name) -> object."""
    found = [made for made in yaml.safe_load_all(text_of(*arguments, release=release)) if made]
    made = {(item["kind"], item["metadata"]["name"]): item for item in found}
    assert len(made) == len(found)
    return made


def refusal(*arguments: str) -> str:
    done = run("template", "kubealign", str(CHART), *arguments)
    assert done.returncode != 0, f"accepted: {arguments}"
    return done.stderr


def pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and spec of every pod, whatever makes it."""
    for (kind, name), found in objects.items():
        for path, part in walk(found):
            if isinstance(part, dict) and "containers" in part:
                yield f"{kind} {name} {path}", part


def walk(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, part
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        yield from walk(value, f"{path}/{key}")


def profile_of(objects: Objects, name: str, folder: Path) -> Profile:
    """A profile of the rendered ConfigMap, read as a run reads it."""
    path = folder / f"{name}.yaml"
    path.write_text(objects["ConfigMap", "kubealign-profiles"]["data"][f"{name}.yaml"])
    return profiles.load(str(path))


def values_file(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_values_for_ci_pass_lint(case: Path) -> None:
    done = run("lint", "--strict", str(CHART), "-f", str(case))
    assert done.returncode == 0, done.stdout + done.stderr


def test_rendering_is_the_golden_one() -> None:
    """`make golden` writes the file anew; look at the difference before keeping it."""
    made = text_of("-f", str(CHART / "ci" / "eks-values.yaml"))
    if os.environ.get("KUBEALIGN_GOLDEN"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_object_says_its_namespace_release_and_chart(case: Path) -> None:
    for (kind, name), found in render("-f", str(case)).items():
        assert found["metadata"].get("namespace") == (None if kind == "PriorityClass" else "training"), (kind, name)
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "kubealign" and labels["helm.sh/chart"].startswith("kubealign-")


# Pod Security Standards, profile restricted: https://kubernetes.io/docs/concepts/security/pod-security-standards


def breaches(pod: dict[str, Any]) -> list[str]:
    """What the restricted standard forbids in a pod."""
    found = [f"{key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    }  # fmt: skip
    found += [f"volume {volume}" for volume in pod.get("volumes", []) if set(volume) - {"name"} - allowed]
    whole = pod.get("securityContext", {})
    found += ["sysctls"] if whole.get("sysctls") else []
    for container in [*pod["containers"], *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]:
        own = container.get("securityContext", {})
        both = {**whole, **own}
        capabilities = own.get("capabilities", {})
        rules = {
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "capabilities.drop": "ALL" in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPorts": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, kept in rules.items() if not kept]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_restricted_namespace_takes_every_pod(case: Path) -> None:
    seen = dict(pods(render("-f", str(case))))
    assert len(seen) >= 4  # janitor, the store by two accounts, jobs
    assert {name: breaches(pod) for name, pod in seen.items() if breaches(pod)} == {}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_pods_read_only_root_numeric_user_and_no_token_without_need(case: Path) -> None:
    for name, pod in pods(render("-f", str(case))):
        assert pod["securityContext"]["runAsUser"] == USER, name
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "limits" in container.get("resources", {}) or container["name"] == "node", name
        if pod.get("serviceAccountName") == "kubealign-jobs":
            assert pod["automountServiceAccountToken"] is False, name


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_no_rule_has_a_wildcard(case: Path) -> None:
    roles = [found for (kind, _), found in render("-f", str(case)).items() if kind in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "nonResourceURLs" not in rule


def test_role_and_janitor_are_the_ones_that_the_cluster_tests_prove() -> None:
    """infra/kubernetes is for who has no Helm; both say the same."""
    made = render(*ROOT)
    shipped = {
        (found["kind"], found["metadata"]["name"]): found
        for name in ("launcher.yaml", "janitor.yaml")
        for found in yaml.safe_load_all((INFRA / name).read_text())
    }
    assert ("ServiceAccount", "kubealign-launcher") in made
    role = ("Role", "kubealign-launcher")
    assert made[role]["rules"] == shipped[role]["rules"]
    janitor, ours = (objects["CronJob", "kubealign-janitor"]["spec"] for objects in (shipped, made))
    template = ours["jobTemplate"]["spec"]["template"]
    del template["metadata"], template["spec"]["containers"][0]["envFrom"]
    assert ours == janitor


def test_training_runtime_is_the_shipped_one_and_reaches_the_store() -> None:
    shipped = yaml.safe_load((INFRA / "training-runtime.yaml").read_text())
    given = ("--set", "trainingRuntime.enabled=true,store.endpoint=http://s3:80,launcher.backend=trainjob")
    secret = ("--set", "store.credentials.kind=secret,store.credentials.secretName=s3")
    made = render(*ROOT, *given, *secret)["TrainingRuntime", "kubealign"]
    (replicated,) = made["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container.pop("envFrom") == [{"secretRef": {"name": "kubealign-store"}}, {"secretRef": {"name": "s3"}}]
    assert made["spec"] == shipped["spec"]


def launcher_settings(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the code makes of the ConfigMap that launchers get."""
    for name in list(os.environ):
        if name.startswith(("KUBEALIGN_", "KFP_")):
            monkeypatch.delenv(name)
    for name, value in objects["ConfigMap", "kubealign-launcher"]["data"].items():
        monkeypatch.setenv(name, value)
    return Settings.from_environment()


def spec(step: str, config: dict[str, Any]) -> StepSpec:
    return StepSpec(
        step=step, run="r", seed=0, config=config, inputs={}, input_digests={}, output=f"s3://b/{step}", code=""
    )


def test_code_understands_what_launchers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = render(
        "-f", str(CHART / "ci" / "cluster-values.yaml"),
        "--set", "images.registry=registry.test/team,store.endpoint=http://s3:80,launcher.onSigterm=leave",
    )  # fmt: skip
    told = made["ConfigMap", "kubealign-launcher"]["data"]
    settings = launcher_settings(made, monkeypatch)
    assert settings.service_account == "kubealign-jobs" and ("ServiceAccount", "kubealign-jobs") in made
    assert settings.env_from_secrets == ("kubealign-store", "s3") and ("Secret", "kubealign-store") in made
    assert settings.delete_on_sigterm is False
    assert settings.image(spec("reward_model", {})) == "registry.test/team/kubealign/reward-model:test"
    assert told["KUBEALIGN_BACKEND"] in NAMES and told["KUBEALIGN_ROOT"] == "s3://kubealign"


def test_every_variable_of_the_launchers_is_one_that_the_code_reads() -> None:
    code = "".join(path.read_text() for room in ("components", "pipelines") for path in (HOUSE / room).rglob("*.py"))
    told = render(*ROOT)["ConfigMap", "kubealign-launcher"]["data"]
    assert [name for name in told if f'"{name}"' not in code] == []


def test_store_settings_are_what_aws_clients_read_and_hold_no_credential() -> None:
    case = ("-f", str(CHART / "ci" / "kind-values.yaml"))
    assert render(*case)["Secret", "kubealign-store"]["stringData"] == {
        "AWS_ENDPOINT_URL": "http://s3.storage.svc:8333",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    assert ("Secret", "kubealign-store") not in render(*ROOT)


def test_irsa_annotates_both_accounts_beside_what_they_have_and_pod_identity_neither() -> None:
    made = render("-f", str(CHART / "ci" / "eks-values.yaml"))
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/kubealign"}
    assert made["ServiceAccount", "kubealign-launcher"]["metadata"]["annotations"] == {"team": "alignment"} | role
    assert made["ServiceAccount", "kubealign-jobs"]["metadata"]["annotations"] == role
    assert "annotations" not in render(*ROOT)["ServiceAccount", "kubealign-jobs"]["metadata"]


def test_only_the_launchers_account_gives_pods_a_token() -> None:
    made = render(*ROOT)
    assert made["ServiceAccount", "kubealign-launcher"]["automountServiceAccountToken"] is True
    assert made["ServiceAccount", "kubealign-jobs"]["automountServiceAccountToken"] is False


def test_accounts_of_the_users_own_are_used_and_not_made() -> None:
    own = "serviceAccounts.launcher.create=false,serviceAccounts.launcher.name=mine,serviceAccounts.jobs.create=false"
    made = render(*ROOT, "--set", own)
    assert not [name for kind, name in made if kind == "ServiceAccount"]
    assert made["RoleBinding", "kubealign-launcher"]["subjects"][0]["name"] == "mine"
    assert made["ConfigMap", "kubealign-launcher"]["data"]["KUBEALIGN_SERVICE_ACCOUNT"] == "default"


# Profiles


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_profile_is_one_that_the_code_takes_and_every_step_makes_a_job(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = render("-f", str(case))
    settings = launcher_settings(made, monkeypatch)
    backend = made["ConfigMap", "kubealign-launcher"]["data"]["KUBEALIGN_BACKEND"]
    kind = PyTorchJob() if backend == "pytorchjob" else TrainJob(settings.runtime)
    names = [name.removesuffix(".yaml") for name in made["ConfigMap", "kubealign-profiles"]["data"]]
    assert names
    for name in names:
        found = profile_of(made, name, tmp_path)
        for step in JOB_STEPS:
            what = spec(step, getattr(found, step).model_dump(mode="json"))
            job = Job(spec=what, attempt=0, namespace="n", image=settings.image(what), owner=None)
            assert kind.build(job)["kind"] == kind.kind


def test_stages_reach_the_profile_over_the_shipped_one_that_it_extends(tmp_path: Path) -> None:
    found = profile_of(render("-f", str(CHART / "ci" / "eks-values.yaml")), "qwen-7b", tmp_path)
    sft, evaluate, base = found.sft.resources, found.evaluate.resources, found.base_model.resources
    assert (sft.gpus, sft.processes, sft.memory, sft.queue) == (8, 8, "1000Gi", "training")
    assert sft.priority_class == "kubealign-training" and sft.tolerations[0]["key"] == "team"
    assert sft.image.startswith("kubealign/sft@sha256:") and found.pmp.resources.image == "kubealign/pmp:0.1.0"
    assert (evaluate.memory, evaluate.shared_memory) == ("128Gi", "16Gi")  # the stage's own over the pool's
    assert evaluate.node_selector == sft.node_selector
    assert (base.memory, base.node_selector, base.tolerations) == ("64Gi", {}, [])  # no GPU: not in the pool
    assert found.ppo.resources.nodes == 2 and found.sample_responses.resources.spot is True
    # What the shipped profile says is still there, and so is what this one says.
    assert found.sft.zero.stage == 2 and found.sft.steps is None and found.sft.learning_rate == 2e-6


def test_later_layers_win_even_with_nothing_and_mappings_are_merged(tmp_path: Path) -> None:
    values = {
        "store": {"root": "s3://bucket"},
        "stages": {
            "defaults": {"gpus": 4, "spot": True, "cpu": "8", "node_selector": {"a": "1", "b": "1"}},
            "gpu": {"tolerations": [{"key": "pool"}], "node_selector": {"b": "2"}},
            "sft": {"gpus": 0, "spot": False, "cpu": ""},
            "pmp": {"node_selector": {"b": "3"}},
        },
        "profiles": {"mine": {"extends": "demo", "pmp": {"resources": {"tolerations": [], "gpus": 2}}}},
    }
    made = render("-f", values_file(tmp_path, values))
    found = profile_of(made, "mine", tmp_path)
    sft, pmp, ppo = found.sft.resources, found.pmp.resources, found.ppo.resources
    assert (sft.gpus, sft.spot, sft.cpu, sft.tolerations) == (0, False, "", [])
    assert (pmp.gpus, pmp.tolerations, pmp.node_selector) == (2, [], {"a": "1", "b": "3"})
    assert (ppo.gpus, ppo.tolerations, ppo.node_selector) == (4, [{"key": "pool"}], {"a": "1", "b": "2"})
    assert found.name == "mine" and found.sft.batch_size == 64


def test_secrets_of_a_stage_come_beside_the_stores(tmp_path: Path) -> None:
    """The launcher gives its own only to jobs that name none."""
    case = ("-f", str(CHART / "ci" / "kind-values.yaml"), "--set", "stages.sft.env_from_secrets={hub,s3}")
    found = profile_of(render(*case), "demo", tmp_path)
    assert found.sft.resources.env_from_secrets == ["kubealign-store", "s3", "hub"]
    assert found.ppo.resources.env_from_secrets == ["kubealign-store", "s3"]


def test_profile_says_all_that_a_launcher_must_know_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that Kubeflow Pipelines starts gets no variable of ours: the same job must come of it."""
    made = render("-f", str(CHART / "ci" / "kind-values.yaml"), "--set", "images.registry=registry.test,images.tag=v9")
    told = launcher_settings(made, monkeypatch)
    what = spec("sft", profile_of(made, "demo", tmp_path).sft.model_dump(mode="json"))

    def job(settings: Settings) -> dict[str, Any]:
        return PyTorchJob().build(
            Job(
                spec=what, attempt=0, namespace="n", image=settings.image(what), owner=None,
                service_account=settings.service_account, env_from_secrets=settings.env_from_secrets,
            )
        )  # fmt: skip

    assert job(Settings()) == job(told)
    pod = job(Settings())["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["serviceAccountName"] == "kubealign-jobs"
    assert pod["containers"][0]["image"] == "registry.test/kubealign/sft:v9"


@pytest.mark.parametrize("name", ["env_from_secrets={a}", "priority_class=a", "image_pull_policy=Always"])
def test_what_a_trainjob_cannot_carry_is_refused_with_its_path(name: str) -> None:
    said = refusal(*ROOT, "--set", f"launcher.backend=trainjob,stages.sft.{name}")
    assert f"stages.sft.{name.partition('=')[0]}" in said and "TrainingRuntime" in said


def test_large_and_small_numbers_of_a_profile_arrive_as_they_are(tmp_path: Path) -> None:
    """Helm reads every number as a float and prints 1e+06 where it is not told otherwise."""
    ppo = {"policy_learning_rate": 1.0e-7, "iterations": 10000000, "truncation_score": -1000000.0}
    values = {"store": {"root": "s3://bucket"}, "profiles": {"big": {"seed": 2000000000, "ppo": ppo}}}
    found = profile_of(render("-f", values_file(tmp_path, values)), "big", tmp_path)
    assert found.seed == 2000000000
    assert {name: getattr(found.ppo, name) for name in ppo} == ppo


@pytest.mark.parametrize("name", sorted(profiles.shipped()))
def test_every_shipped_profile_can_be_given_as_values(name: str, tmp_path: Path) -> None:
    text = re.sub(r": null\b", ': "null"', profiles.shipped()[name].read_text())
    values = {"store": {"root": "s3://bucket"}, "profiles": {name: yaml.safe_load(text)}}
    found = profile_of(render("-f", values_file(tmp_path, values)), name, tmp_path)
    expected = load_profile(profiles.shipped()[name])
    for step in JOB_STEPS:  # of which the chart says more
        given, shipped = getattr(found, step), getattr(expected, step)
        assert given.resources.processes == shipped.resources.processes
        given.resources = shipped.resources
    assert found == expected


# Switches


def test_nothing_optional_is_made_unless_it_is_switched_on() -> None:
    kinds = {kind for kind, _ in render(*ROOT)}
    assert kinds == {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "CronJob", "Pod"}
    off = "rbac.create=false,janitor.enabled=false,tests.store=false,tests.jobs=false,profiles.demo=null"
    assert {kind for kind, _ in render(*ROOT, "--set", off)} == {"ServiceAccount", "ConfigMap"}


@pytest.mark.parametrize(
    ("switch", "kind"),
    [
        ("priorityClass.enabled=true", "PriorityClass"),
        ("kueue.enabled=true,kueue.clusterQueue=all", "LocalQueue"),
        ("resourceQuota.enabled=true,resourceQuota.hard.pods=5", "ResourceQuota"),
        ("podDisruptionBudget.enabled=true", "PodDisruptionBudget"),
        ("networkPolicy.enabled=true", "NetworkPolicy"),
        ("metrics.podMonitor.enabled=true", "PodMonitor"),
        ("trainingRuntime.enabled=true", "TrainingRuntime"),
    ],
)
def test_switch_makes_its_kind_and_no_other(switch: str, kind: str) -> None:
    assert {kind for kind, _ in render(*ROOT, "--set", switch)} - {kind for kind, _ in render(*ROOT)} == {kind}


def test_templates_look_nothing_up_in_the_cluster() -> None:
    text = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    assert not re.search(r"\b(lookup|Capabilities|randAlpha\w*|genCA|now)\b", text)
    arguments = ("-f", str(CHART / "ci" / "eks-values.yaml"))
    assert text_of(*arguments) == text_of(*arguments)


def test_what_selects_a_jobs_pods_selects_them() -> None:
    """Network policy, PodMonitor and disruption budget against the labels that a launcher gives."""
    made = render("-f", str(CHART / "ci" / "eks-values.yaml"))
    labels = Job(spec=spec("sft", {}), attempt=0, namespace="n", image="", owner=None).labels()
    selectors = [
        made["NetworkPolicy", "kubealign-jobs"]["spec"]["podSelector"],
        made["PodMonitor", "kubealign"]["spec"]["selector"],
        made["PodDisruptionBudget", "kubealign-jobs"]["spec"]["selector"],
    ]
    for selector in selectors:
        ((term,),) = (selector["matchExpressions"],)
        assert set(selector) == {"matchExpressions"}
        assert term["operator"] == "Exists" and term["key"] in labels
        assert term["key"] in made["Pod", "kubealign-test-metrics"]["metadata"]["labels"]
        assert term["key"] not in made["Pod", "kubealign-test-jobs"]["metadata"]["labels"]


def test_kfp_launcher_config_follows_the_store() -> None:
    made = render("-f", str(CHART / "ci" / "kind-values.yaml"), "--set", "kfp.launcherConfig.enabled=true")
    data = made["ConfigMap", "kfp-launcher"]["data"]
    assert data["defaultPipelineRoot"] == "s3://kubealign/demo/kfp"
    keys = {"secretName": "s3", "accessKeyKey": "AWS_ACCESS_KEY_ID", "secretKeyKey": "AWS_SECRET_ACCESS_KEY"}
    assert yaml.safe_load(data["providers"])["s3"]["default"] == {
        "endpoint": "s3.storage.svc:8333", "region": "us-east-1", "disableSSL": True, "forcePathStyle": True,
        "credentials": {"fromEnv": False, "secretRef": keys},
    }  # fmt: skip


def test_tests_are_hooks_with_scripts_that_are_python() -> None:
    made = render("-f", str(CHART / "ci" / "eks-values.yaml"))
    tests = {name: found for (kind, name), found in made.items() if kind == "Pod"}
    assert sorted(tests) == [
        f"kubealign-test-{name}" for name in ("jobs", "kfp", "metrics", "store-jobs", "store-launcher")
    ]
    for name, found in tests.items():
        assert found["metadata"]["annotations"]["helm.sh/hook"] == "test"
        (container,) = found["spec"]["containers"]
        *python, script = container["command"]
        assert python == ["python", "-c"]
        compile(script, name, "exec")
        assert "$(" not in script  # Kubernetes would put a variable there
    scripts = {path.name: path.read_text() for path in (CHART / "files" / "tests").iterdir()}
    assert {found["spec"]["containers"][0]["command"][2] for found in tests.values()} == set(scripts.values())


def test_names_stay_short_enough_whatever_the_release_is_called() -> None:
    made = render("-f", str(CHART / "ci" / "eks-values.yaml"), release="r" * 53)
    assert [name for kind, name in made if len(name) > (52 if kind == "CronJob" else 63)] == []


def test_notes_name_the_next_three_commands() -> None:
    for case in CASES:
        done = run("install", "kubealign", str(CHART), "-n", "training", "--dry-run=client", "-f", str(case))
        assert done.returncode == 0, done.stderr
        notes = done.stdout.partition("NOTES:\n")[2]
        assert re.findall(r"^(\d)\. ", notes, re.MULTILINE) == ["1", "2", "3"]
        assert len(re.findall(r"^   (?:helm test|kubectl|export|kubealign) ", notes, re.MULTILINE)) == 3, notes


# The schema

BAD = [
    ("store.root=", "'/store/root'", "does not match pattern"),
    ("store.root=/local/folder", "'/store/root'", "does not match pattern"),
    ("store.root=s3://bucket/", "'/store/root'", "does not match pattern"),
    ("store.bucket=b", "'/store'", "'bucket' not allowed"),
    ("store.endpoint=s3.storage:80", "'/store/endpoint'", "does not match pattern"),
    ("store.credentials.kind=keys", "'/store/credentials/kind'", "must be one of 'secret', 'irsa'"),
    ("store.credentials.kind=secret", "'/store/credentials/secretName'", "minLength"),
    ("store.credentials.kind=irsa", "'/store/credentials/roleArn'", "minLength"),
    ("store.credentials.roleArn=role/kubealign", "'/store/credentials/roleArn'", "does not match pattern"),
    ("store.credentials.accessKey=AKIA", "'/store/credentials'", "'accessKey' not allowed"),
    ("imagse.tag=1", "''", "'imagse' not allowed"),
    ("images.registry=https://registry.test", "'/images/registry'", "does not match pattern"),
    ("images.pullPolicy=always", "'/images/pullPolicy'", "must be one of 'Always'"),
    ("images.steps.sft.digest=sha256:12", "'/images/steps/sft/digest'", "does not match pattern"),
    ("images.steps.reward-model.tag=1", "'/images/steps'", "'reward-model' not allowed"),
    ("images.launcher.tag=a b", "'/images/launcher/tag'", "does not match pattern"),
    ("serviceAccounts.jobs.name=Trainer", "'/serviceAccounts/jobs/name'", "does not match pattern"),
    ("serviceAccounts.jobs.annotations.a=1", "'/serviceAccounts/jobs/annotations/a'", "got number, want string"),
    ("rbac.subjects[0].namespace=kubeflow", "'/rbac/subjects/0'", "missing property 'name'"),
    ("launcher.backend=local", "'/launcher/backend'", "must be one of 'pytorchjob', 'trainjob'"),
    ("launcher.onSigterm=keep", "'/launcher/onSigterm'", "must be one of 'delete', 'leave'"),
    ("stages.sft.gpus=many", "'/stages/sft/gpus'", "got string, want integer"),
    ("stages.sft.gpus=-1", "'/stages/sft/gpus'", "minimum: got -1, want 0"),
    ("stages.sft.nodeSelector.a=b", "'/stages/sft'", "'nodeSelector' not allowed"),
    ("stages.defaults.memory=64GB", "'/stages/defaults/memory'", "does not match pattern"),
    ("stages.gpu.tolerations[0].operator=Any", "'/stages/gpu/tolerations/0/operator'", "must be one of 'Exists'"),
    ("stages.data_prep.cpu=8", "'/stages'", "'data_prep' not allowed"),
    ("profiles.mine.ppo.kl_coeficient=0.1", "'/profiles/mine/ppo'", "'kl_coeficient' not allowed"),
    ("profiles.mine.sft.zero.stage=4", "'/profiles/mine/sft/zero/stage'", "must be one of 0, 1, 2, 3"),
    ("profiles.mine.ppo.top_p=2", "'/profiles/mine/ppo/top_p'", "maximum: got 2, want 1"),
    ("profiles.Mine.seed=1", "'/profiles'", "'Mine' not allowed"),
    ("priorityClass.value=2000000000", "'/priorityClass/value'", "maximum"),
    ("kueue.enabled=true", "'/kueue/clusterQueue'", "minLength"),
    ("resourceQuota.hard.pods=some", "'/resourceQuota/hard/pods'", "does not match pattern"),
    ("podDisruptionBudget.enabled=maybe", "'/podDisruptionBudget/enabled'", "got string, want boolean"),
    ("networkPolicy.egress.cidrs={everywhere}", "'/networkPolicy/egress/cidrs/0'", "does not match pattern"),
    ("janitor.schedule=hourly", "'/janitor/schedule'", "does not match pattern"),
    ("janitor.graceSeconds=1m", "'/janitor/graceSeconds'", "got string, want integer"),
    ("janitor.resources.requests.gpu=1", "'/janitor/resources/requests'", "'gpu' not allowed"),
    ("kfp.enabled=true", "'/kfp/endpoint'", "minLength"),
    ("kfp.endpoint=ml-pipeline:8888", "'/kfp/endpoint'", "does not match pattern"),
    ("metrics.podMonitor.interval=30", "'/metrics/podMonitor/interval'", "want string"),
    ("tests.metrics=true", "'/tests/prometheusUrl'", "minLength"),
    ("trainingRuntime.enabled=yes please", "'/trainingRuntime/enabled'", "got string, want boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "reason"), BAD, ids=[value for value, _, _ in BAD])
def test_bad_value_is_refused_with_its_path(value: str, path: str, reason: str) -> None:
    said = refusal(*ROOT, "--set", value)
    assert f"at {path}" in said and reason in said, said


def objects_of(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a mapping; not what lies below `if`, which only asks."""
    if isinstance(part, list):
        for item in part:
            yield from objects_of(item, path)
    if not isinstance(part, dict):
        return
    if part.get("type") == "object":
        yield path, part
    for key, inner in part.items():
        if key in ("properties", "patternProperties", "$defs"):
            for name, found in inner.items():
                yield from objects_of(found, f"{path}/{name}")
        elif key not in ("if", "then", "allOf"):
            yield from objects_of(inner, path if key in ("items", "anyOf") else f"{path}/{key}")


# What Kubernetes or Helm itself checks: free on purpose.
FREE = {"/global", "/Resources/affinity"}


def test_schema_knows_every_key() -> None:
    seen = 0
    for path, part in objects_of(SCHEMA):
        seen += 1
        extra = part.get("additionalProperties")
        if "properties" in part or "patternProperties" in part:
            assert extra is False, path
        elif path not in FREE:
            assert isinstance(extra, dict) and extra, path  # a mapping with free keys has typed values
    assert seen > 60


def test_schema_describes_every_value() -> None:
    seen = 0
    for path, part in objects_of(SCHEMA):
        for name, inner in part.get("properties", {}).items():
            seen += 1
            assert len(inner.get("description", "")) > 2, f"{path}/{name}"
    assert seen > 300


def test_every_value_has_a_default_and_every_default_a_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part: dict[str, Any], default: dict[str, Any], path: str) -> None:
        assert set(part["properties"]) - {"global"} == set(default), path
        for name, inner in part["properties"].items():
            if "properties" in inner:
                compare(inner, default[name], f"{path}/{name}")

    compare(SCHEMA, values, "")


def test_stages_and_images_are_those_of_the_steps_that_run_as_jobs() -> None:
    jobs = set(STEPS) - set(_BESIDE_THE_LAUNCHER)
    assert set(JOB_STEPS) == jobs and set(CHAIN) <= jobs | set(_BESIDE_THE_LAUNCHER)
    assert set(SCHEMA["properties"]["stages"]["properties"]) - {"defaults", "gpu"} == jobs
    assert set(SCHEMA["properties"]["images"]["properties"]["steps"]["properties"]) == jobs


def test_generated_schema_and_readme_are_the_golden_ones() -> None:
    """The schema's part that comes from the code, and the README's table that comes from the schema."""
    if os.environ.get("KUBEALIGN_GOLDEN"):
        generate.main()
    assert generate.SCHEMA.read_text() == generate.schema(generate.SCHEMA.read_text())
    assert generate.README.read_text() == generate.readme(generate.README.read_text())


def test_chart_has_the_version_of_the_code() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"', (HOUSE / "pyproject.toml").read_text(), re.MULTILINE)
    assert project and chart["appVersion"] == project.group(1)


def test_chart_works_inside_another_chart(tmp_path: Path) -> None:
    """An umbrella chart, as many use with Argo CD: Helm then gives every chart a key `global`."""
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "kubealign").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: umbrella, version: 1.0.0}")
    (tmp_path / "values.yaml").write_text("{global: {team: a}, kubealign: {store: {root: s3://bucket}}}")
    done = run("template", "kubealign", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "kind: CronJob" in done.stdout

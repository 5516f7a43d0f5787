"""The files that images are built from: locked by hash, nothing of the other half, one target a step."""

import json
import re
from pathlib import Path

import pytest

from components.core.config import STEPS

HOUSE = Path(__file__).resolve().parents[3]
IMAGES = HOUSE / "images"
BAKE = json.loads((IMAGES / "docker-bake.json").read_text())
LOCKS = sorted(IMAGES.glob("*/*.lock"))


def pins(path: Path) -> dict[str, frozenset[str]]:
    """name==version of every requirement, with its hashes."""
    blocks = re.split(r"\n(?=\S)", path.read_text())
    found = {
        block.split()[0]: frozenset(re.findall(r"sha256:[0-9a-f]{64}", block)) for block in blocks if "==" in block
    }
    return {name: hashes for name, hashes in found.items() if not name.startswith("#")}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_requirement_is_the_projects_own_by_hash(path: Path) -> None:
    whole, part = pins(HOUSE / "requirements.lock"), pins(path)
    assert part and all(part.values())
    assert {name: whole.get(name) for name in part} == part
    assert "://" not in path.read_text()


def test_training_has_no_kfp_and_the_launcher_no_torch() -> None:
    training = " ".join(pins(IMAGES / "training" / "requirements.lock") | pins(IMAGES / "training" / "torch.lock"))
    launcher = " ".join(pins(IMAGES / "launcher" / "requirements.lock"))
    assert not re.search(r"\b(kfp|kubernetes)==", training) and re.search(r"\btorch==", training)
    assert not re.search(r"\b(torch|deepspeed|nvidia-\S+)==", launcher) and re.search(r"\bkfp==", launcher)


def test_one_target_for_every_image_and_one_image_for_every_step() -> None:
    targets = BAKE["group"]["default"]["targets"]
    assert (
        sorted(targets) == sorted(BAKE["target"]) == sorted(path.parent.name for path in IMAGES.glob("*/Containerfile"))
    )
    assert {step.replace("_", "-") for step in STEPS} <= set(targets)


@pytest.mark.parametrize("name", sorted(BAKE["target"]))
def test_target_fits_its_containerfile(name: str) -> None:
    target = BAKE["target"][name]
    text = (HOUSE / target["dockerfile"]).read_text()
    declared = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert set(target["args"]) <= declared
    for variable in re.findall(r"\$\{(\w+)\}", json.dumps(target)):
        assert variable in BAKE["variable"]
    for context, where in target["contexts"].items():
        assert f"from={context}" in text or f"FROM {context}" in text
        assert not where.startswith("target:") or where.removeprefix("target:") in BAKE["target"]
    assert {f"org.opencontainers.image.{key}" for key in ("source", "revision", "licenses")} <= set(target["labels"])
    if name not in ("data-prep", *(step.replace("_", "-") for step in STEPS)):
        assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE), "restricted namespaces want a number"

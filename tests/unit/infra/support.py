"""Terraform on this machine: where it is, and how a copy of the folder is run without touching the original."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

HOUSE = Path(__file__).resolve().parents[3]
TERRAFORM = HOUSE / "infra" / "terraform"
MODULES = sorted(path.parent.relative_to(TERRAFORM).as_posix() for path in TERRAFORM.glob("modules/*/main.tf"))


def _plugins() -> Path:
    """The folder for `terraform init -plugin-dir`: as told, or one below /opt that holds the provider."""
    found = [path.parents[2] for path in sorted(Path("/opt").glob("*/*/hashicorp/aws"))]
    return Path(os.environ.get("KUBEALIGN_TF_PLUGINS") or (found[0] if found else "/opt/terraform-plugins"))


PLUGINS = _plugins()

needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
needs_plugins = pytest.mark.skipif(
    not PLUGINS.is_dir(), reason=f"no folder of Terraform plug-ins at {PLUGINS}: set KUBEALIGN_TF_PLUGINS"
)


def copy(to: Path) -> Path:
    """The folder without what an earlier `terraform init` has left in it."""
    return shutil.copytree(TERRAFORM, to / "terraform", ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))


def terraform(
    folder: Path, *arguments: str, ok: bool = True, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run it in a folder, far from anybody's settings and credentials; where `ok`, it must succeed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    own |= {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "AWS_EC2_METADATA_DISABLED": "true", **environment}
    done = subprocess.run(
        ["terraform", *arguments], cwd=folder, env=own, capture_output=True, text=True, timeout=900, check=False
    )
    if ok:
        assert done.returncode == 0, f"terraform {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done


def init(folder: Path) -> None:
    terraform(folder, "init", "-backend=false", "-input=false", "-no-color", f"-plugin-dir={PLUGINS}")

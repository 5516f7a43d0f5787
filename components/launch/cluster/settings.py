"""What a launcher is told by its surroundings: namespace, images, what to do when it is stopped."""

import os
from dataclasses import dataclass
from typing import Any

import components
from components.core.config import step_config
from components.core.errors import UserError
from components.core.spec import StepSpec

DEFAULT_IMAGES = f"kubealign/{{step}}:{components.__version__}"


@dataclass(frozen=True)
class Settings:
    """`images` names a step's image: a text with {step} in it, for one whose `resources.image` is empty.

    `service_account` and `env_from_secrets` serve every job whose resources name none, so that whoever starts a run
    need not know how this cluster reaches its store. A TrainJob cannot carry secrets: its TrainingRuntime does, which
    `runtime` names.
    """

    namespace: str = ""
    runtime: str = "kubealign"
    service_account: str = ""
    env_from_secrets: tuple[str, ...] = ()
    images: str = DEFAULT_IMAGES
    delete_on_sigterm: bool = True
    pod_name: str = ""
    pod_uid: str = ""

    @classmethod
    def from_environment(cls) -> "Settings":
        """From KUBEALIGN_* (listed in the room's README) and the pipeline backend's KFP_POD_*."""
        on_sigterm = os.environ.get("KUBEALIGN_ON_SIGTERM", "delete")
        if on_sigterm not in ("delete", "leave"):
            raise UserError(f"KUBEALIGN_ON_SIGTERM is {on_sigterm!r}", fix="delete or leave")
        return cls(
            namespace=os.environ.get("KUBEALIGN_NAMESPACE", ""),
            runtime=os.environ.get("KUBEALIGN_RUNTIME", "kubealign"),
            service_account=os.environ.get("KUBEALIGN_SERVICE_ACCOUNT", ""),
            env_from_secrets=tuple(filter(None, os.environ.get("KUBEALIGN_ENV_FROM_SECRETS", "").split(","))),
            images=os.environ.get("KUBEALIGN_IMAGES", DEFAULT_IMAGES),
            delete_on_sigterm=on_sigterm == "delete",
            pod_name=os.environ.get("KFP_POD_NAME", ""),
            pod_uid=os.environ.get("KFP_POD_UID", ""),
        )

    def image(self, spec: StepSpec) -> str:
        return step_config(spec.step, spec.config).resources.image or self.images.format(
            step=spec.step.replace("_", "-")
        )

    def owner(self) -> dict[str, Any] | None:
        """The launcher's own pod, so that a job goes with it when it is deleted."""
        if not (self.pod_name and self.pod_uid):
            return None
        return {
            "apiVersion": "v1", "kind": "Pod", "name": self.pod_name, "uid": self.pod_uid, "controller": False,
            "blockOwnerDeletion": False,
        }  # fmt: skip

"""What another run has made, as the settings that the pipeline `preference_data` starts from."""

from components.core import store
from components.core.config import Profile
from components.core.errors import UserError
from components.core.spec import read_result
from pipelines.runs import Run

# Setting of the section preference_data: the step and the output of it that it is.
_OUTPUTS = {
    "models.base": ("base_model", "model"), "models.sft": ("sft", "model"), "models.ppo": ("ppo", "model"),
    "prompts": ("data_prep", "ppo"), "start": ("pmp", "model"), "demonstrations": ("data_prep", "sft"),
    "heldout": ("data_prep", "reward_model"),
}  # fmt: skip


def from_run(run: Run) -> list[str]:
    """Overrides that take models and data from a run of the alignment pipeline."""
    found = []
    for setting, (step, output) in _OUTPUTS.items():
        result = read_result(store.join(run.uri, step))
        if result is None or output not in result.outputs:
            fix = f"finish it with `kubealign run --resume {run.id} --root {run.root}`, or choose another --from"
            raise UserError(f"run {run.id} has no {output} of {step} yet", where=run.uri, fix=fix)
        found.append(f"preference_data.{setting}={result.outputs[output]}")
    return found


def absolute(profile: Profile) -> Profile:
    """Paths that mean the same in every process, wherever that is started."""

    def whole(uri: str) -> str:
        path = store.local_path(uri) if uri else None
        return uri.rstrip("/") if path is None else str(path)

    own = profile.preference_data
    uris = {name: whole(getattr(own, name)) for name in ("prompts", "start", "demonstrations", "heldout")}
    models = {name: whole(uri) for name, uri in own.models.items()}
    return profile.model_copy(update={"preference_data": own.model_copy(update={**uris, "models": models})})

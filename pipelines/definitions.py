"""The pipelines: where each one's steps lie in a run, and what of a profile it takes."""

import importlib
from dataclasses import dataclass
from typing import Any

from components.core.config import CHAIN, Profile
from components.core.errors import UserError
from components.launch.pipeline_step import SHARDS, place_of_shard
from pipelines.parameters import sections, struct


@dataclass(frozen=True, kw_only=True)
class Definition:
    """`tasks`: by its folder in the run, each step's task of the pipeline, in the order in which one machine runs them.

    `sections` of a profile are its parameters, and so are the fields of the section `own`. Where `takes_raw_data`,
    SHARDS among the tasks is the loop over the raw data's shards, each of which has a folder in SHARDS.
    """

    name: str
    sections: tuple[str, ...]
    tasks: dict[str, str]
    own: str = ""
    takes_raw_data: bool = False

    def places(self, profile: Profile) -> list[str]:
        """The steps' folders in a run, in order."""
        shards = [place_of_shard(shard) for shard in _shards(profile)]
        return [place for task in self.tasks for place in (shards if task == SHARDS else [task])]

    def load(self) -> Any:
        """The pipeline itself. kfp takes seconds to import."""
        return getattr(importlib.import_module(f"pipelines.{self.name}"), self.name)

    def arguments(self, profile: Profile) -> dict[str, Any]:
        """The pipeline's parameters that are the profile's."""
        own = struct(getattr(profile, self.own)) if self.own else {}
        raw = {"data_shards": _shards(profile)} if self.takes_raw_data else {}
        return {"seed": profile.seed} | sections(profile, self.sections) | own | raw

    def check(self, profile: Profile, data_root: str) -> None:
        """Refuse what cannot work before there is a run."""
        if data_root and not self.takes_raw_data:
            raise UserError(f"pipeline {self.name} reads no raw data", fix="leave out --data-root")
        missing = [name for name, value in self._own(profile).items() if not value]
        if missing:
            fix = f"give --from RUN, or --set {self.own}.{missing[0]}=..."
            raise UserError(f"pipeline {self.name} needs {', '.join(missing)}", fix=fix)

    def _own(self, profile: Profile) -> dict[str, Any]:
        return dict(getattr(profile, self.own)) if self.own else {}


def _shards(profile: Profile) -> list[str]:
    return [f"{number}/{profile.data_shards}" for number in range(1, profile.data_shards + 1)]


def definition(profile: Profile) -> Definition:
    """The pipeline that a profile is for."""
    return DEFINITIONS[profile.pipeline]


_STEPS_OF_AN_ARM = ("sample_responses", "annotate", "data_prep")
DEFINITIONS = {
    "alignment": Definition(
        name="alignment",
        sections=CHAIN,
        tasks={"base_model": "base-model", SHARDS: "for-loop-2"}
        | {step: step.replace("_", "-") for step in CHAIN if step != "base_model"},
        takes_raw_data=True,
    ),
    "preference_data": Definition(
        name="preference_data",
        sections=("sample_responses", "annotate", "data_prep", "reward_model", "evaluate"),
        tasks={
            # KFP numbers the tasks of a component from the second on.
            **{f"several/{step}": step.replace("_", "-") for step in _STEPS_OF_AN_ARM},
            **{f"single/{step}": f"{step.replace('_', '-')}-2" for step in _STEPS_OF_AN_ARM},
            "several/reward_model": "reward-model",
            "single/reward_model": "reward-model-2",
            "evaluate": "compare",
        },
        own="preference_data",
    ),
}

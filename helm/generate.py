"""What of the chart is made from something else: `python -m helm.generate` writes it, the tests compare.

The schema of profiles and of what a stage runs on, in `values.schema.json`, comes from the settings of the code: what a
run would refuse, `helm template` refuses. The README's table comes from that schema and from `values.yaml`.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from components.core.config import Profile

CHART = Path(__file__).resolve().parent / "kubealign"
SCHEMA, README = CHART / "values.schema.json", CHART / "README.md"
Json = dict[str, Any]

_DROPPED = ("default", "required", "source", "title", "unit")
_TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)
# Written down here, since the code leaves it to Kubernetes.
_TOLERATION: Json = {
    "type": "object",
    "description": "a taint to tolerate",
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string", "description": "the taint's key; none for every taint"},
        "operator": {"enum": ["Exists", "Equal"], "description": "whether its value counts"},
        "value": {"type": "string", "description": "the taint's value"},
        "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"], "description": "one effect of it alone"},
        "tolerationSeconds": {"type": "integer", "description": "how long NoExecute is tolerated", "minimum": 0},
    },
}


def schema(text: str) -> str:
    """The schema with its `$defs` made anew from the code; the rest is written by hand."""
    made = json.loads(text)
    made["$defs"] = profile_definitions()
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def profile_definitions() -> Json:
    """The schema of a profile, for values: a profile that extends another need not repeat what that says."""
    whole = Profile.model_json_schema()
    definitions: Json = whole.pop("$defs")
    whole["properties"]["extends"] = {"type": "string", "description": "a shipped profile that this one changes"}
    definitions["Profile"] = whole
    made: Json = {name: _for_values(definition) for name, definition in sorted(definitions.items())}
    made["Resources"]["properties"]["tolerations"]["items"] = _TOLERATION
    return made


def _for_values(found: Any) -> Any:
    if isinstance(found, list):
        return [_for_values(item) for item in found]
    return _part(found) if isinstance(found, dict) else found


def _part(found: Json) -> Json:
    made: Json = {}
    for key, value in found.items():
        if key == "properties":
            made[key] = {name: _for_values(part) for name, part in value.items()}
        elif key not in _DROPPED:
            made[key] = _for_values(value)
    if unit := found.get("unit"):
        made["description"] += f" ({unit})"
    if {"type": "null"} in made.get("anyOf", []):  # Helm takes a null for "not given"; the code takes the text for it
        made["anyOf"] = [{"const": "null"} if part == {"type": "null"} else part for part in made["anyOf"]]
    # Helm's validator names another place than the one where a property's name is wrong (jsonschema 6.0.3).
    if names := made.pop("propertyNames", None):
        pattern = "^(" + "|".join(names["enum"]) + ")$"
        made |= {"patternProperties": {pattern: made["additionalProperties"]}, "additionalProperties": False}
    return made


def readme(text: str) -> str:
    """The README with its table of values made anew."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    rows = ["| value | default | what |", "|---|---|---|", *_rows(json.loads(SCHEMA.read_text()), values, "")]
    return _TABLE.sub(lambda _: "\n".join(rows) + "\n", text)


def _rows(part: Json, default: Any, path: str) -> list[str]:
    rows = []
    for name, inner in part["properties"].items():
        where, value = f"{path}{name}", default.get(name) if isinstance(default, dict) else None
        if "properties" in inner:
            rows += _rows(inner, value, f"{where}.")
        elif where != "global":
            shown = f"`{json.dumps(value)}`" if _says_something(value) else ""
            rows.append(f"| `{where}` | {shown} | {inner['description'].replace('|', chr(92) + '|')} |")
    return rows


def _says_something(value: Any) -> bool:
    return any(map(_says_something, value.values())) if isinstance(value, dict) and value else value not in ("", None)


def main() -> None:
    for path, make in ((SCHEMA, schema), (README, readme)):
        path.write_text(make(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

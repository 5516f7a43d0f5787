"""The same number of responses from one model as from several: what the others would give, it gives itself."""

from typing import Any

from components.core.errors import UserError


def one_model(config: dict[str, Any], models: dict[str, str], name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(config, models) for the model `name` alone. A greedy strategy has one response, whoever gives it."""
    if name not in models:
        known = ", ".join(sorted(models)) or "none"
        raise UserError(f"no model {name!r}", where="preference_data.single", fix=f"choose one of {known}")
    strategies = [
        {**one, "samples": one.get("samples", 1) * (len(models) if one.get("temperature", 1.0) else 1)}
        for one in config["strategies"]
    ]
    return {**config, "strategies": strategies}, {name: models[name]}

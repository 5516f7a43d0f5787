from pathlib import Path

import pytest

from components.core.config import load_profile
from components.core.errors import UserError


def test_a_profile_of_ones_own_extends_a_shipped_one_even_by_the_same_name(tmp_path: Path) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    shipped.mkdir()
    own.mkdir()
    (shipped / "demo.yaml").write_text("name: demo\nppo: {kl_coefficient: 0.3, iterations: 7}\n")
    (own / "demo.yaml").write_text("extends: demo\nppo: {kl_coefficient: 0.5}\n")
    profile = load_profile(own / "demo.yaml", shipped=shipped)
    assert (profile.ppo.kl_coefficient, profile.ppo.iterations) == (0.5, 7)


def test_a_shipped_profile_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    with pytest.raises(UserError, match="circle"):
        load_profile(tmp_path / "a.yaml")

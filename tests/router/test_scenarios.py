from __future__ import annotations

from pathlib import Path

import pytest

from tests.router.scenario import Scenario, blocks

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_router_says_what_the_scenario_expects(path: Path, tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    for commands, expected in blocks(path.read_text()):
        assert scenario.run(commands) == expected, f"after: {commands}"

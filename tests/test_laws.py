"""Every memory keeps every law, on every device that is here."""

import pytest
from laws import LAWS
from memories import MEMORIES


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_law(memory: str, law: str, device: str) -> None:
    LAWS[law](MEMORIES[memory], device)

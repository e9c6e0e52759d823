"""Text ends at the stop string that is complete first, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.postprocess import StopStrings
from tests.fuzz.budget import budget
from tests.fuzz.fragments import cuts

LETTERS = "abé😀"
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4)


def stopped(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    """What is shown, and which stop string was met."""
    matcher, text = StopStrings(stops, include), ""
    for piece in pieces:
        text += matcher.push(piece)
        if matcher.matched is not None:
            return text, matcher.matched
    return text + matcher.flush(), None


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        met = max((stop for stop in stops if text[:end].endswith(stop)), key=len, default=None)
        if met is not None:
            return text[:end] if include else text[: end - len(met)], met
    return text, None


@budget(300)
@given(data=st.data(), stops=STOPS, text=st.text(LETTERS, max_size=30), include=st.booleans())
def test_stop_strings(data: st.DataObject, stops: list[str], text: str, include: bool) -> None:
    wanted = expected(text, stops, include)
    for pieces in ([text], list(text), data.draw(cuts(text))):
        assert stopped(pieces, stops, include) == wanted

import pytest

from bayeskit.core import operators


def test_the_innermost_recording_gets_the_largest_value():
    with operators.recording() as outer:
        operators.note("jitter", 1.0)
        with operators.recording() as inner:
            operators.note("jitter", 2.0)
            operators.note("jitter", 0.5)
        operators.note("jitter", 0.0)
    assert (outer, inner) == ({"jitter": 1.0}, {"jitter": 2.0})


def test_a_note_outside_of_a_recording_is_dropped():
    operators.note("jitter", 1.0)
    with operators.recording() as notes:
        pass
    assert notes == {}


def test_a_recording_ends_with_its_block_also_on_an_error():
    with operators.recording() as outer:
        with pytest.raises(RuntimeError), operators.recording() as inner:
            raise RuntimeError
        operators.note("jitter", 1.0)
    assert (outer, inner) == ({"jitter": 1.0}, {})

"""Evidence is counted by confidence, and what is kept of it never keeps a server from serving."""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.documents import MAX_BYTES
from parity_models.roles import Source
from parity_models.trust import evidence as evidences
from parity_models.trust.evidence import (
    WRITE_EVERY,
    Evidence,
    EvidenceStore,
    GateState,
    Learned,
)

DIGEST = "0123456789abcdef-and-more"

bins = st.lists(st.floats(-10, 10), min_size=1, max_size=8, unique=True).map(
    lambda found: tuple(sorted(found))
)
seen = st.lists(st.tuples(st.floats(-20, 20), st.booleans(), st.floats(0, 1)), max_size=50)
Seen = list[tuple[float, bool, float]]


def counted(thresholds: tuple[float, ...], comparisons: Seen) -> Evidence:
    found = Evidence(thresholds)
    for confidence, differed, doubt in comparisons:
        found.add(confidence, differed=differed, doubt=doubt)
    return found


@given(bins, seen)
def test_counts_are_by_threshold(thresholds: tuple[float, ...], comparisons: Seen) -> None:
    found = counted(thresholds, comparisons)
    compared, differed, expected = found.above
    for place, threshold in enumerate(reversed(thresholds)):
        above = [each for each in comparisons if each[0] >= threshold]
        if place == len(thresholds) - 1:
            above = comparisons  # the lowest bin has all below, too
        assert compared[place] == len(above)
        assert differed[place] == sum(each[1] for each in above)
        assert expected[place] == pytest.approx(sum(each[2] for each in above))
        assert found.since(threshold) == (len(above), len(above) - differed[place])
    assert found.total == len(comparisons)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evidence) == found
    found.clear()
    assert found == Evidence(thresholds)


@given(bins, bins, seen, seen)
def test_evidence_of_others_is_added_if_the_bins_are_the_same(
    mine: tuple[float, ...], theirs: tuple[float, ...], first: Seen, second: Seen
) -> None:
    found = counted(mine, first)
    found += (other := counted(theirs, second))
    assert found.thresholds == mine
    known = first + second if mine == theirs else first
    assert found.compared == counted(mine, known).compared
    assert found.differed == counted(mine, known).differed
    assert sum(found.expected) == pytest.approx(sum(each[2] for each in known))
    assert other == counted(theirs, second), "the other is as before"


@pytest.mark.parametrize(
    "wrong",
    [
        '{"thresholds":[]}',
        '{"thresholds":[1,0]}',
        '{"thresholds":[0],"compared":[1,1]}',
        '{"thresholds":[0],"compared":[-1]}',
        '{"thresholds":[0],"compared":[9e99]}',
        '{"thresholds":[0],"differed":[1]}',
        '{"thresholds":[0],"unknown":1}',
    ],
)
def test_evidence_that_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(wrong, type=Evidence)


# Files


def learned(compared: int, changed: float = 0.0) -> Learned:
    found = Evidence((0.0, 1.0), [compared, compared], [0, 0], [0.5, 0.5])
    return Learned(found, {"in time": GateState(found, 1.0, [2], changed)})


def kept(folder: Path, compared: int, changed: float = 0.0, digest: str = DIGEST) -> EvidenceStore:
    """A store that a server uses and has written to."""
    store = EvidenceStore(folder, digest)
    store.own[Source.BACKUP] = learned(compared, changed)
    store.save()
    return store


def test_the_next_server_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    kept(folder, 7).close()
    kept(folder, 9, digest="of another bundle").close()
    store = EvidenceStore(folder, DIGEST)
    assert store.learned(Source.BACKUP) == learned(7)
    assert store.learned(Source.RECONSTRUCTION) == Learned()
    assert store.learned_by_others(Source.BACKUP) == []


def test_servers_at_the_same_time_take_files_of_their_own_and_read_each_other_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = kept(tmp_path, 1)
    second = kept(tmp_path, 2)
    assert second.learned_by_others(Source.BACKUP) == [learned(1)]
    assert not caplog.records
    third = EvidenceStore(tmp_path, DIGEST, slots=2)
    assert "2 others keep evidence" in caplog.text
    third.learned(Source.BACKUP)
    third.close()  # writes nothing
    first.close()
    later = EvidenceStore(tmp_path, DIGEST)
    assert later.learned(Source.BACKUP) == learned(1)
    assert later.learned_by_others(Source.BACKUP) == [learned(2)]


def test_older_evidence_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(evidences, "time", lambda: clock)
    stores = [kept(tmp_path, 1)]
    clock = 2000.0
    stores.append(kept(tmp_path, 2, changed=1999.0))
    clock = 3000.0
    stores.append(kept(tmp_path, 3))
    others = EvidenceStore(tmp_path, DIGEST).learned_by_others(Source.BACKUP)
    assert others == [learned(2, 1999.0), learned(3)]
    stores[0].close()
    assert EvidenceStore(tmp_path, DIGEST).learned(Source.BACKUP) == learned(1), "written anew"
    # What a server that was away has is as old as its file.
    clock = 4000.0
    stores[2].own[Source.BACKUP] = learned(4, changed=3999.0)
    stores[2].save()
    store = EvidenceStore(tmp_path, DIGEST)
    assert store.learned(Source.BACKUP) == learned(1), "a judge adopts the change"
    assert store.learned_by_others(Source.BACKUP) == [learned(4, 3999.0)]


def test_clock_jump_costs_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate steps back when the clock is wrong, which is then corrected."""
    clock = 9e9
    monkeypatch.setattr(evidences, "time", lambda: clock)
    kept(tmp_path, 1, changed=9e9).close()
    clock = 1000.0
    first = EvidenceStore(tmp_path, DIGEST)
    second = kept(tmp_path, 2)
    clock = 2000.0
    assert first.learned(Source.BACKUP) == learned(1, 9e9)
    for each in (first, second):
        each.read()
    assert first.learned_by_others(Source.BACKUP) == [learned(2)]
    assert second.learned_by_others(Source.BACKUP) == [learned(1, 9e9)]


def test_a_turn_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(evidences, "monotonic", lambda: clock)
    store = EvidenceStore(tmp_path, DIGEST)
    written = [(0.0, False, 0), (WRITE_EVERY - 1, False, 0), (WRITE_EVERY, False, 1)]
    written += [(WRITE_EVERY + 1, False, 1), (WRITE_EVERY + 2, True, 2)]
    for at, turned, times in written:
        clock = at
        for each in tmp_path.glob("*.json"):
            each.rename(tmp_path / "written")
        store.save(now=turned)
        assert bool([*tmp_path.glob("*.json")]) == (times > 0 and (turned or at == WRITE_EVERY))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content[:-9], "is no evidence, and is ignored"),
        (lambda content: b"", "is no evidence, and is ignored"),
        (
            lambda content: content.replace(b't":1', b't":2'),
            "its format is 2, and this version reads 1",
        ),
        (lambda content: content.replace(DIGEST.encode(), b"another"), "is about another bundle"),
        (lambda content: b" " * MAX_BYTES + content, "it has more than 1 MiB"),
    ],
    ids=["torn", "empty", "newer", "foreign", "huge"],
)
def test_a_file_that_is_none_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[bytes], bytes], said: str
) -> None:
    kept(tmp_path, 1).close()
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(spoil(path.read_bytes()))
    kept(tmp_path, 2).close()
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING][:1]
    assert said in record.getMessage()
    assert str(path) in record.getMessage()
    assert EvidenceStore(tmp_path, DIGEST).learned(Source.BACKUP) == learned(2)


@given(
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.binary(max_size=3), st.sampled_from([b"-1", b"[]", b"9e99", b"null", b'"a"'])),
    st.integers(0, 9),
)
def test_whatever_is_in_a_file_a_server_starts(
    tmp_path_factory: pytest.TempPathFactory, place: float, put: bytes, instead: int
) -> None:
    folder = tmp_path_factory.mktemp("state")
    kept(folder, 1).close()
    (path,) = folder.glob("*.json")
    whole = path.read_bytes()
    at = int(place * len(whole))
    path.write_bytes(whole[:at] + put + whole[at + instead :])
    store = EvidenceStore(folder, DIGEST)
    assert isinstance(store.learned(Source.BACKUP), Learned)
    store.close()


def test_unwritable_folder_stops_no_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / each for each in ("file", "file/in it", "/proc/none")):
        caplog.clear()
        kept(place, 1).close()
        assert f"evidence cannot be kept in {place}" in caplog.text
    (tmp_path / "in it" / f"evidence-{DIGEST[:16]}-0.json").mkdir(parents=True)
    kept(tmp_path / "in it", 1).close()
    assert "is no evidence, and is ignored: [Errno 21] Is a directory" in caplog.text
    store = kept(tmp_path, 1)
    (path,) = tmp_path.glob("*.json")
    path.with_suffix(".part").mkdir()  # where a file is written first
    store.own[Source.BACKUP] = learned(2)
    store.close()
    assert "evidence cannot be kept: " in caplog.text
    assert EvidenceStore(tmp_path, DIGEST).learned(Source.BACKUP) == learned(1)

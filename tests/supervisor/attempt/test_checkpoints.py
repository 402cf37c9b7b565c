"""Rotation removes old checkpoints, and never anything that a kept record needs; a restart looks what is there."""

from pathlib import Path

import pytest

from supervisor.attempt.checkpoints import Checkpoints, remembered


@pytest.fixture
def record(tmp_path: Path) -> Checkpoints:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return Checkpoints.open(folder, 2, lambda _: None)


def saved_file(path: Path, text: str = "state") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def saved_folder(path: Path) -> str:
    saved_file(path / "model.pt")
    return str(path)


# -- rotation


def test_older_checkpoints_of_their_own_are_removed(record: Checkpoints) -> None:
    for step in range(5):
        record.record(step, saved_folder(record.directory / f"step{step}"))
    record.record(5, saved_file(record.directory / "step5.pt"))
    assert sorted(path.name for path in record.directory.iterdir()) == ["resume.json", "step4", "step5.pt"]


def test_one_file_that_is_written_again_at_each_step_stays(record: Checkpoints) -> None:
    for step in range(5):
        record.record(step, saved_file(record.directory / "latest.pt", str(step)))
        assert (record.directory / "latest.pt").read_text() == str(step)


def test_one_folder_with_a_tag_for_each_step_stays(record: Checkpoints) -> None:
    for step in range(5):
        saved_folder(record.directory / "all" / f"step{step}")
        record.record(step, str(record.directory / "all"))
    assert len(list((record.directory / "all").iterdir())) == 5


def test_a_folder_in_which_kept_checkpoints_lie_stays(record: Checkpoints) -> None:
    saved_folder(record.directory / "all")
    record.record(0, str(record.directory / "all"))
    for step in range(1, 4):
        record.record(step, saved_folder(record.directory / "all" / f"step{step}"))
    assert sorted(path.name for path in (record.directory / "all").iterdir()) == ["model.pt", "step2", "step3"]


def test_what_lies_in_a_kept_checkpoint_stays(record: Checkpoints) -> None:
    record.record(0, saved_file(record.directory / "all" / "base.pt"))
    for step in range(1, 4):
        record.record(step, str(record.directory / "all"))
    assert (record.directory / "all" / "base.pt").exists()


def test_one_path_spelt_in_two_ways_is_one_path(record: Checkpoints) -> None:
    saved_folder(record.directory / "latest")
    for step in range(4):
        detour = record.directory / "latest" / ".." / "latest" if step % 2 else record.directory / "latest"
        record.record(step, str(detour))
        assert (record.directory / "latest" / "model.pt").exists()


def test_what_a_kept_link_leads_to_stays_and_so_does_every_link_on_the_way(record: Checkpoints) -> None:
    folder = record.directory
    saved_folder(folder / "real" / "step0")
    (folder / "inner").symlink_to("real")
    (folder / "outer").symlink_to("inner")
    record.record(0, str(folder / "real" / "step0"))
    record.record(1, str(folder / "inner"))
    for step in range(2, 5):
        record.record(step, str(folder / "outer" / "step0"))
    assert (folder / "outer" / "step0" / "model.pt").exists()
    assert (folder / "inner").is_symlink()


def test_what_a_kept_folder_borrows_by_a_link_stays(record: Checkpoints) -> None:
    folder = record.directory
    record.record(0, saved_folder(folder / "step0"))
    for step in range(1, 4):
        (folder / f"step{step}").mkdir()
        (folder / f"step{step}" / "model.pt").symlink_to(f"../step{step - 1}/model.pt")
        record.record(step, str(folder / f"step{step}"))
    assert (folder / "step3" / "model.pt").read_text() == "state"


def test_a_link_that_nobody_needs_is_removed_and_not_what_it_leads_to(record: Checkpoints) -> None:
    folder = record.directory
    saved_folder(folder / "real")
    (folder / "link").symlink_to("real")
    record.record(0, str(folder / "link"))
    for step in range(1, 4):
        record.record(step, saved_file(folder / f"step{step}.pt"))
    assert not (folder / "link").is_symlink()
    assert (folder / "real" / "model.pt").exists()


def test_nothing_outside_of_the_pipelines_own_folder_is_removed(record: Checkpoints, tmp_path: Path) -> None:
    elsewhere = saved_folder(tmp_path / "elsewhere")
    saved_folder(record.directory / "inside")
    (tmp_path / "link").symlink_to(record.directory / "inside")
    record.record(0, elsewhere)
    record.record(1, str(tmp_path / "link"))
    record.record(2, str(record.directory))
    for step in range(3, 6):
        record.record(step, saved_file(record.directory / f"step{step}.pt"))
    assert (tmp_path / "elsewhere" / "model.pt").exists()
    assert (tmp_path / "link").is_symlink()
    assert (record.directory / "resume.json").exists()


def test_links_in_a_circle_end(record: Checkpoints) -> None:
    folder = record.directory
    for step in range(4):
        saved_folder(folder / f"step{step}")
        (folder / f"step{step}" / "again").symlink_to(".")
        (folder / f"step{step}" / "never").symlink_to("never")
        record.record(step, str(folder / f"step{step}"))
    assert sorted(path.name for path in folder.iterdir()) == ["resume.json", "step2", "step3"]


# -- what is there


def test_the_newest_checkpoint_that_is_there_counts(record: Checkpoints) -> None:
    for step in range(3):
        record.record(step, saved_file(record.directory / f"step{step}.pt"))
    assert (record.usable().steps_done, record.usable().newest) == (3, str(record.directory / "step2.pt"))
    (record.directory / "step2.pt").unlink()
    assert (record.usable().steps_done, record.usable().newest) == (2, str(record.directory / "step1.pt"))
    (record.directory / "step1.pt").unlink()
    assert (record.usable().steps_done, record.usable().newest) == (0, None)


def test_one_that_comes_back_counts_again(record: Checkpoints) -> None:
    record.record(0, saved_file(record.directory / "step0.pt"))
    (record.directory / "step0.pt").rename(record.directory / "away")
    assert record.usable().steps_done == 0
    record.published(3)
    (record.directory / "away").rename(record.directory / "step0.pt")
    assert record.usable().steps_done == 1
    assert remembered(record.directory).steps_done == 1


def test_steps_that_are_done_again_take_the_place_of_those_that_were_lost(record: Checkpoints) -> None:
    for step in range(4):
        record.record(step, saved_file(record.directory / f"step{step}.pt"))
    (record.directory / "step3.pt").unlink()
    assert record.usable().steps_done == 3
    record.record(3, saved_file(record.directory / "again3.pt"))
    assert record.usable().newest == str(record.directory / "again3.pt")
    assert [saved.step for saved in record.known.checkpoints] == [2, 3]

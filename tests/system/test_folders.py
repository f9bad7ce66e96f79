"""What is walked of a folder: what links lead to, and nothing without end."""

from pathlib import Path

from fishexp.system.folders import walk


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    for file in ("a/1", "a/deep/2", "b/3", "b/deep/4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    for link, target in (("a/up", "."), ("a/b", "b"), ("b/deep/round", "b"), ("b/a", "a"), ("a/gone", "c")):
        (tmp_path / link).symlink_to(tmp_path / target)
    found = {str((here / name).relative_to(tmp_path)) for here, _, files in walk(tmp_path / "a") for name in files}
    assert found == {"a/1", "a/deep/2", "a/b/3", "a/b/deep/4", "a/gone"}


def test_a_folder_may_be_left_out(tmp_path: Path) -> None:
    for name in ("kept", "left"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    seen = []
    for here, folders, _ in walk(tmp_path):
        seen.append(here.name)
        if "left" in folders:
            folders.remove("left")
    assert seen == [tmp_path.name, "kept"]

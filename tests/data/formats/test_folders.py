import os
import pathlib

import pytest

from jaxvla.data.formats import folders
from jaxvla.errors import DataError


def make(root: pathlib.Path, *files: str) -> pathlib.Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def paths(root: pathlib.Path, pattern: str = "**") -> list[str]:
    return [folder.path.as_posix() for folder in folders.glob(root, pattern, set())]


def test_links_are_followed_and_never_back_up(tmp_path):
    root = make(tmp_path / "above" / "root", "b/x/file", "a/y/file")
    make(tmp_path / "else", "where/file")
    (root / "linked").symlink_to(tmp_path / "else")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "out").symlink_to(tmp_path)
    (root / "a" / "to_b").symlink_to("../b")
    (root / "b" / "to_a").symlink_to(root / "a")
    (tmp_path / "else" / "where" / "up").symlink_to(tmp_path / "else")
    (root / "a" / "itself").symlink_to("itself")
    found = {folder.path.as_posix(): folder for folder in folders.walk(root, lambda path: True)}
    assert list(found) == [
        ".",
        *("a", "a/to_b", "a/to_b/x", "a/y"),
        *("b", "b/to_a", "b/to_a/y", "b/x"),
        *("linked", "linked/where"),
    ]
    assert found["a"].folders == ("to_b", "y")
    assert found["a"].dead == ("itself", "out", "up")
    assert found["a/to_b"].dead == ("to_a",)
    assert found["b/x"].files == ("file",)
    assert found["linked/where"].dead == ("up",)


def test_a_link_that_leads_nowhere_is_lost_where_it_matches(tmp_path):
    make(tmp_path, "a/file")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for pattern, expected in {"*": {tmp_path / "gone"}, "a": set()}.items():
        lost = set()
        assert [folder.path.name for folder in folders.glob(tmp_path, pattern, lost)] == ["a"]
        assert lost == expected


def test_no_level_is_too_deep(tmp_path):
    (tmp_path / "/".join("d" * 60)).mkdir(parents=True)
    assert len(paths(tmp_path)) == 61


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    make(tmp_path, "a/file", "b/file")
    scandir = os.scandir

    def refuse(path):
        if pathlib.Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/b: cannot be read: Permission denied"):
        paths(tmp_path)
    assert paths(tmp_path, "a") == ["a"]


TREE = ("rss/kitchen/pot/00/f", "rss/kitchen/pot/01/f", "rss/sink/pan/00/f", "scripted/a/f", "scripted/b1/f", "é[x/f")


PATTERNS = "** * ?*/?*/?* rss/?*/?*/?* scripted/?* scripted/? rss/** **/0[1-9] **/pot/** rss/**/00 **/** rss [!r]* é[x"
ENDS = "* */push/* push/00 0? /data/*/push/00 /data/push push x/*/00"


@pytest.mark.parametrize("pattern", [*PATTERNS.split(), "rss/kitchen/", "**/pot", "a*/**"])
def test_patterns_mean_what_they_mean_to_pathlib(tmp_path, pattern):
    make(tmp_path, *TREE)
    expected = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(f"{pattern}/.") if path.is_dir()}
    assert sorted(paths(tmp_path, pattern)) == sorted(expected)


@pytest.mark.parametrize("pattern", ENDS.split())
def test_the_end_of_a_path_is_matched_as_by_pathlib(pattern):
    for text in ("/data/x/push/00", "/data/push", "/data/x/push", "push/00"):
        path = pathlib.PurePath(text)
        assert folders.ends_with(path, pattern) == path.match(pattern), (text, pattern)


def test_stars_in_an_ending_stand_for_any_number_of_folders():
    path = pathlib.PurePath("/data/rss/kitchen/pot/00")
    for pattern in ("rss/**", "rss/**/00", "**/pot/**", "kitchen/**/pot/*"):
        assert folders.ends_with(path, pattern), pattern
    assert not folders.ends_with(path, "rss/**/01")


def test_hidden_folders_are_found_by_name_only(tmp_path):
    make(tmp_path, ".kept/a/f", "b/.old/c/f", "lost+found/f")
    assert paths(tmp_path) == [".", "b"]
    assert paths(tmp_path, "?*/*") == []
    assert paths(tmp_path, ".kept/*") == [".kept/a"]
    assert folders.ends_with(tmp_path / "b" / ".old" / "c", "*/c")


@pytest.mark.parametrize("pattern", ["/rss/*", "../*", "a/../b"])
def test_patterns_that_lead_out_are_refused(tmp_path, pattern):
    with pytest.raises(DataError, match=r"leads out of .*: give it relative to that folder"):
        paths(tmp_path, pattern)


def test_each_file_counts_once(tmp_path):
    make(tmp_path, "store/z/f")
    (tmp_path / "a").symlink_to("store/z")
    (tmp_path / "b").symlink_to("a")
    named = [tmp_path / name / "f" for name in ("b", "a", "store/z")]
    assert folders.distinct(named) == ([tmp_path / "store" / "z" / "f"], [tmp_path / "a" / "f", tmp_path / "b" / "f"])
    assert folders.distinct(named[:1]) == (named[:1], [])
    (tmp_path / "a_long" / "way").mkdir(parents=True)
    (tmp_path / "a_long" / "way" / "z").symlink_to(tmp_path / "store" / "z")
    assert folders.distinct([tmp_path / "a_long" / "way" / "z" / "f", named[0]])[0] == named[:1]

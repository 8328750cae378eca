"""Files with the official Python client."""

import os

import pytest
from sprites.exceptions import (
    DirectoryNotEmptyError,
    FileNotFoundError_,
    FilesystemError,
    IsADirectoryError_,
    NotADirectoryError_,
)


@pytest.fixture
def home(sprite):
    return sprite.filesystem("/home/sprite")


def test_text_and_bytes_come_back(home, sh):
    (home / "text").write_text("grün\n")
    assert (home / "text").read_text() == "grün\n"
    data = os.urandom(3 << 20)
    (home / "deep/er/bytes").write_bytes(data)
    assert (home / "deep/er/bytes").read_bytes() == data
    (home / "text").write_text("shorter")
    assert (home / "text").read_text() == "shorter"
    assert sh("stat -c '%U %a' text deep") == "sprite 644\nsprite 755\n"
    (home / "script").write_text("#!/bin/sh\necho ran\n", mode=0o755)
    assert sh("./script") == "ran\n"


def test_paths_start_at_the_working_directory(sprite, sh):
    root = sprite.filesystem()
    (root / "home/sprite/absolute").write_text("1")
    (sprite.filesystem("/tmp") / "relative").write_text("2")
    (sprite.filesystem("/tmp") / "/home/sprite/other").write_text("3")
    assert sh("cat /home/sprite/absolute /tmp/relative /home/sprite/other") == "123"


def test_what_a_path_is(home, sh):
    sh("mkdir dir; echo 12345 > dir/file; ln -s dir/file link; chmod 640 dir/file")
    # The client asks for a directory's entries and looks at the first, so only directories that hold something exist for it.
    assert (home / "dir").exists()
    assert (home / "dir/file").is_file() and not (home / "dir/file").is_dir()
    assert not (home / "nothing").exists() and not (home / "nothing").is_file()
    found = (home / "dir/file").stat()
    assert (found.name, found.size, found.mode, found.is_dir) == ("file", 6, "0640", False)


def test_directories_are_listed_made_and_removed(home, sh):
    (home / "made").mkdir()
    (home / "a/b/c").mkdir(parents=True)
    sh("touch made/one made/two; mkdir made/three")
    with pytest.raises(FilesystemError):
        (home / "made/one").mkdir(exist_ok=True)
    (home / "made").mkdir()
    assert sorted((home / "made").listdir()) == ["one", "three", "two"]
    assert {path.name for path in (home / "made").iterdir()} == {"one", "two", "three"}
    with pytest.raises(DirectoryNotEmptyError):
        (home / "made").rmdir()
    (home / "made/one").unlink()
    (home / "made/three").rmdir()
    (home / "made").rmtree()
    (home / "a").rmtree()
    assert sh("ls") == ""


def test_errors_say_what_is_wrong(home, sh):
    sh("mkdir dir; touch file")
    with pytest.raises(FileNotFoundError_):
        (home / "missing").read_bytes()
    with pytest.raises(FileNotFoundError_):
        (home / "missing").stat()
    with pytest.raises(FileNotFoundError_):
        (home / "missing").unlink()
    (home / "missing").unlink(missing_ok=True)
    with pytest.raises(IsADirectoryError_):
        (home / "dir").read_bytes()
    with pytest.raises(NotADirectoryError_):
        (home / "file/below").write_text("x")


def test_root_owned_places_can_be_written(sprite, sh):
    (sprite.filesystem() / "root/.config/file").write_text("secret")
    assert sh("sudo cat /root/.config/file") == "secret"


def test_odd_names_are_just_names(home, sh):
    for name in ["with space", "ümlaut", "quote'\"", "new\nline", "-dash", "%2e%2e", "a&b=c#d?e", "x" * 255]:
        (home / name).write_text(name)
        assert (home / name).read_text() == name
    assert int(sh("ls -q | wc -l")) == 8


def test_renames_copies_and_modes(home, sh):
    sh("mkdir -p tree/deep; echo 1 > tree/deep/file; ln -s deep/file tree/link; echo old > there")
    (home / "tree/deep/file").rename("moved")
    assert sh("cat tree/deep/moved") == "1\n"
    (home / "tree/deep/moved").replace("/home/sprite/there")
    assert sh("cat there; ls tree/deep") == "1\n"
    (home / "there").copy_to("tree/deep/file")
    (home / "tree").copy_to("twin")
    assert sh("cat twin/link; stat -c %U twin/deep/file") == "1\nsprite\n"
    (home / "twin").chmod(0o700, recursive=True)
    assert sh("stat -c %a twin twin/deep twin/deep/file tree/deep/file") == "700\n700\n700\n644\n"
    with pytest.raises(FileNotFoundError_):
        (home / "nothing").rename("x")
    with pytest.raises(IsADirectoryError_):
        (home / "tree").copy_to("flat", recursive=False)
    with pytest.raises(DirectoryNotEmptyError):
        (home / "tree").rename("twin")
    with pytest.raises(FilesystemError):
        (home / "there").rename("/etc/there")


def test_a_copy_of_what_is_large(home, sh):
    sum_ = sh("head -c 300M /dev/urandom > big; sha256sum < big")
    (home / "big").copy_to("twin")
    assert sh("sha256sum < twin; ls") == f"{sum_}big\ntwin\n"

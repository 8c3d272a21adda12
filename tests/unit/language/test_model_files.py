"""Folders of models as they lie on the disk."""

import os
import stat

from llm_qfl.language.files import write_folder


def test_another_user_may_read_what_was_written_whatever_the_library_s_modes(tmp_path):
    def write(folder):
        (folder / "inner").mkdir(mode=0o700)
        for path in (folder / "weights.safetensors", folder / "inner" / "tokenizer.json"):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o077)
    try:
        write_folder(tmp_path / "model", write, size=1, what="it")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").rglob("*")}
    assert modes == {"inner": 0o755, "weights.safetensors": 0o644, "tokenizer.json": 0o644}
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755


def a_writer(text, before=lambda: None):
    """Fills a folder; `before` is what another process does meanwhile."""

    def write(folder):
        before()
        (folder / "config.json").write_text(text)

    return write


def test_a_folder_that_another_process_finished_meanwhile_stays_in_use(tmp_path):
    target = tmp_path / "model"

    def other():
        target.mkdir()
        (target / "config.json").write_text("theirs")

    def whole(folder):
        return (folder / "config.json").is_file()

    write_folder(target, a_writer("mine", other), size=1, what="it", whole=whole)
    held = (target / "config.json").stat().st_ino
    write_folder(target, a_writer("again"), size=1, what="it", whole=whole)
    assert (target / "config.json").read_text() == "theirs"
    assert (target / "config.json").stat().st_ino == held
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_folder_is_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "rest").write_text("half")
    write_folder(target, a_writer("new"), size=1, what="it", whole=lambda there: (there / "config.json").is_file())
    assert [path.name for path in target.iterdir()] == ["config.json"]
    write_folder(target, a_writer("newer"), size=1, what="it")
    assert (target / "config.json").read_text() == "newer"

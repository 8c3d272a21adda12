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

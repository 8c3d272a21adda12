"""What tests of several tables share."""

import pytest


@pytest.fixture
def killed_at_the_second(monkeypatch):
    """Calls a table's run, which is killed as the second play of its module begins."""

    def call(module, run):
        played, real = [], module.run_one

        def dies(*args, **named):
            played.append(1)
            if len(played) == 2:
                raise KeyboardInterrupt
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(module, "run_one", dies)
            with pytest.raises(KeyboardInterrupt):
                run()

    return call

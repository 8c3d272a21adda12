"""Whose account pays, and options that change numbers."""

import pytest
from ibm_service.samples import small_work
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.quantum.ibm.account import Account
from llm_qfl.quantum.ibm.budget import Limits, rows_per_job, twirled_shots
from llm_qfl.quantum.ibm.errors import CredentialsError, PreflightError
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import make_runner


def test_the_token_file_comes_first_then_the_variable_then_a_saved_account(tmp_path):
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    environ = {"LLM_QFL_IBM_TOKEN_FILE": str(file), "QISKIT_IBM_TOKEN": "of-the-variable", "QISKIT_IBM_INSTANCE": "crn"}
    account = Account.from_environment(environ)
    assert account.arguments() == {"token": "of-the-file", "instance": "crn"}
    assert "of-the" not in repr(account)
    del environ["LLM_QFL_IBM_TOKEN_FILE"]
    assert Account.from_environment(environ).arguments()["token"] == "of-the-variable"
    assert Account.from_environment({"LLM_QFL_IBM_ACCOUNT": "lab"}).arguments() == {"name": "lab"}
    assert Account.from_environment({}).arguments() == {}


@pytest.mark.parametrize("content", ["", "two words", None])
def test_a_token_file_without_one_token_is_an_error(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CredentialsError, match="nothing was spent"):
        Account.from_environment({"LLM_QFL_IBM_TOKEN_FILE": str(path)})


def test_the_mode_changes_no_number_and_so_no_job():
    assert IbmOptions().digest() == IbmOptions(mode="session").digest()
    assert IbmOptions().digest() != IbmOptions(shots=1000).digest() != IbmOptions(resilience_level=0).digest()


def test_executions_by_hand():
    observables = small_work().observables
    assert IbmOptions(shots=100, resilience_level=0).executions(observables) == (100, 0)
    assert IbmOptions(shots=100, resilience_level=1).executions(observables) == (128, 128)  # 2 randomizations of 64
    assert IbmOptions(shots=100, resilience_level=2).executions(observables) == (384, 128)
    assert IbmOptions(shots=100, resilience_level=0).executions([SparsePauliOp("X"), SparsePauliOp("Z")]) == (200, 0)
    assert twirled_shots(4096, True) == 4096
    assert twirled_shots(100, False) == 100


def test_the_fewest_jobs():
    assert rows_per_job(Limits(1000), 100, 100) == 9
    with pytest.raises(PreflightError, match="one row needs 1100"):
        rows_per_job(Limits(1000), 1000, 100)


@pytest.mark.parametrize("name", ["ibm:", "aer", "ibmq:x"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(PreflightError, match="least-busy"):
        make_runner(name, tmp_path)

"""The public conformance table, against the embedded server, over real sockets."""

import pytest

from keras_unigan.serving import conformance
from keras_unigan.serving.status import ServingError

ROWS = conformance.rows()


@pytest.fixture(scope="module")
def target(server):
    found = conformance.Target(server.grpc_addr, server.rest_url, "toy")
    yield found
    found.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
def test_row(target, row):
    # The toy has a signature of each kind: a skipped row would be an error of the table.
    assert conformance.check(target, row, strict=True, reload=True) == ""


def test_cases_have_names_of_their_own():
    assert len({row.case for row in ROWS}) == len(ROWS)


def test_a_server_that_answers_otherwise_is_told(server, monkeypatch, capsys):
    def refuse(*_):
        raise ServingError("ABORTED", "something else")

    arguments = ["--grpc_addr", server.grpc_addr, "--model_name", "toy"]
    monkeypatch.setattr(server.core.manager, "labelled", refuse)
    assert conformance.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert failed[0] == (
        "FAIL gRPC predict: unknown label: expected INVALID_ARGUMENT 'Unrecognized servable "
        "version label: none', got ABORTED 'something else'"
    )
    assert len(failed) == 2
    skipped = [line for line in lines if line.startswith("skip")]
    assert "skip REST row format: no REST address" in skipped
    assert "skip gRPC predict: another rank: stricter than TensorFlow Serving (--strict)" in skipped
    assert any("reloads the list of models (--reload)" in line for line in skipped)


def test_the_command_runs_against_another_server(server, capsys):
    """As `make conformance` runs it: every row of TensorFlow Serving's own behaviour holds."""
    arguments = ["--grpc_addr", server.grpc_addr, "--rest_url", server.rest_url]
    result = conformance.main([*arguments, "--model_name", "toy"])
    out = capsys.readouterr().out
    assert result == 0, out
    assert ", 0 FAIL, " in out.splitlines()[-1]


@pytest.mark.slow
def test_an_exported_model_conforms(unigan, tmp_path, capsys):
    (tmp_path / "token").write_text("ignored by a server without tokens\n")
    arguments = ["--grpc_addr", unigan.grpc_addr, "--rest_url", unigan.rest_url]
    arguments += ["--model_name", "unigan", "--strict", "--reload"]
    assert conformance.main([*arguments, "--token_file", str(tmp_path / "token")]) == 0, (
        capsys.readouterr().out
    )

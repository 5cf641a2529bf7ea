"""Logs: one JSON object a line, which names what it is about and shows no secret; readable lines for a person."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from ray._private.log import PlainRayHandler
from ray.train.v2._internal.state.schema import _to_json_serializable_value

from raytrain import logs
from raytrain.cli import main
from raytrain.cluster import fit
from raytrain.cluster.runs import RankWork, RunSettings
from raytrain.console import Narrator
from raytrain.errors import DataError
from raytrain.recipes import published_members

SIGNED = "https://host/a.tif?X-Amz-Signature=abc123&X-Amz-Credential=AKIA"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class Written:
    """A logger of its own, whose records are written as a process would write them."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        self.logger = logging.Logger("raytrain.somewhere")
        self.logger.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def written() -> Written:
    return Written(logs.JsonLines())


@pytest.fixture
def as_before() -> Iterator[None]:
    """Leave the logging of this process as it was."""
    root, own = logging.getLogger(), logging.getLogger(logs.LOGGER)
    variable = os.environ.get(logs.VARIABLE)
    loggers = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    before = [(each, list(each.handlers), each.level, each.propagate) for each in loggers]
    own.propagate = True
    os.environ.pop(logs.VARIABLE, None)
    yield
    for each, handlers, level, propagate in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)
    logging.captureWarnings(False)
    logs.be_about()
    if variable is None:
        os.environ.pop(logs.VARIABLE, None)


def raise_one() -> None:
    raise OSError(f"no answer from {SIGNED}\nand a second line")


def test_every_record_is_one_line_of_json_whatever_it_says(written: Written) -> None:
    written.logger.info("two\nlines, a \x00, a \u2028 and a %s", "\udcff")
    try:
        raise_one()
    except OSError:
        written.logger.exception("failed")
    assert written.stream.getvalue().count("\n") == 2
    first, second = written.records
    assert first["message"].startswith("two\nlines")
    assert "Traceback" in second["exception"]
    assert "and a second line" in second["exception"]
    assert (first["level"], second["level"], first["logger"]) == ("INFO", "ERROR", "raytrain.somewhere")
    assert datetime.fromisoformat(first["time"]).utcoffset() is not None
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-01-01T00:00:00.000Z")


def test_no_signature_and_no_secret_gets_into_a_record(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = Written(logs.TextLines())
    for each in (written, text):
        try:
            raise_one()
        except OSError:
            each.logger.exception("can't read %s with %s", SIGNED, SECRET, extra=logs.fields(uri=SIGNED, all=[SECRET]))
        each.logger.warning("redis://user:hunter2@host/0")
    for each in (written, text):
        for hidden in ("abc123", "AKIA", SECRET, "hunter2"):
            assert hidden not in each.stream.getvalue()
        assert "https://host/a.tif" in each.stream.getvalue()


HIDDEN = "SECRETSIG12345"


@pytest.mark.parametrize(
    "text",
    [
        f"url: /p/a.tif?X-Amz-Signature={HIDDEN}",
        f"/vsis3/b/k?sig={HIDDEN}",
        f"/vsicurl?url=https%3A%2F%2Fh%2Fp%3Fsig%3D{HIDDEN}",
        f"https://h/p%3Fsig={HIDDEN}",
        f"https://h/p?x='q'&sig={HIDDEN}",
        f"https://h/p?prompt=a b&Signature={HIDDEN}",
        f"https://us'er:{HIDDEN}@h/x",
        f"https://user:a@{HIDDEN}@h/x",
    ],
)
def test_what_signs_is_hidden_wherever_it_stands(written: Written, text: str) -> None:
    written.logger.warning("%s", text, extra=logs.fields(unit=text, found={text: 1}))
    assert HIDDEN not in written.stream.getvalue()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "REDIS_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SESSION_TOKEN"]
)
def test_every_variable_that_is_called_a_secret_is_one(
    written: Written, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "/an+odd=secret")
    fields = logs.fields(run="/an+odd=secret", what={"/an+odd=secret": b"/an+odd=secret"})
    written.logger.warning("/an+odd=secret, %s", "%2Fan%2Bodd%3Dsecret", extra=fields)
    assert "odd" not in written.stream.getvalue()
    assert written.records[0]["run"] == f"<{name}>"


def test_a_record_that_is_made_wrong_is_read_and_hides_what_the_others_hide(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    written.logger.warning("%d images", SIGNED)
    assert written.records[0]["message"] == "%d images ('https://host/a.tif',)"
    handler = logs.ToStderr()
    handler.setFormatter(logs.JsonLines())
    circle: list[Any] = []
    circle.append(circle)
    record = logging.makeLogRecord({"name": "raytrain.x", "msg": "%s", "args": (SIGNED,), **logs.fields(a=circle)})
    handler.handle(record)
    told = capsys.readouterr().err
    assert "can't be written: RecursionError" in told
    assert "abc123" not in told


def test_numbers_that_json_does_not_have_are_null(written: Written) -> None:
    written.logger.info("loss %s", float("nan"), extra=logs.fields(loss=float("nan"), all=[float("inf"), 1.5]))
    record = json.loads(written.lines[0], parse_constant=lambda name: pytest.fail(name))
    assert (record["loss"], record["all"]) == (None, [None, 1.5])


def test_a_short_word_is_not_taken_for_a_secret(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    written.logger.info("testing")
    assert written.records[0]["message"] == "testing"


@pytest.mark.usefixtures("as_before")
def test_a_record_is_about_its_process_its_thread_and_what_is_said_with_it(written: Written) -> None:
    logs.be_about(run="a-fold0", member="a", fold=0, rank=1, attempt=None)
    with logs.about(unit="u1"):
        written.logger.info("x", extra=logs.fields(rank=2, done=3))
        other = threading.Thread(target=written.logger.info, args=("y",))
        other.start()
        other.join()
    written.logger.info("z")
    subjects = [{name: record.get(name) for name in (*logs.SUBJECT, "done")} for record in written.records]
    process = {"run": "a-fold0", "member": "a", "fold": 0, "rank": 1, "unit": None, "attempt": None, "done": None}
    assert subjects == [process | {"unit": "u1", "rank": 2, "done": 3}, process, process]


def test_fields_do_not_take_the_place_of_what_every_record_has(written: Written) -> None:
    written.logger.info("said", extra=logs.fields(message="other", time=0, level="x"))
    assert written.records[0]["message"] == "said"
    assert written.records[0]["level"] == "INFO"


def test_a_person_reads_what_a_record_is_about_and_other_lines_as_they_are(written: Written) -> None:
    with logs.about(run="a-fold0", rank=0):
        written.logger.warning("slow")
    assert logs.readable(written.lines[0])[8:] == " WARNING raytrain.somewhere [run=a-fold0 rank=0] slow"
    for line in ("12 masks: s3://b/masks", '{"ensemble": null}', "{", "3"):
        assert logs.readable(line) == line


@pytest.mark.usefixtures("as_before")
def test_a_process_says_nothing_twice_and_leaves_files_of_others_alone(tmp_path: Any) -> None:
    root = logging.getLogger()
    file = logging.FileHandler(tmp_path / "log")
    root.addHandler(file)
    root.addHandler(logging.StreamHandler())  # as Ray's, where RAY_LOGGING_CONFIG_ENCODING is set
    logs.begin("json")
    logs.begin("json")
    to_terminal = [each for each in root.handlers if getattr(each, "stream", None) is sys.stderr]
    assert to_terminal == []
    ours = [each for each in root.handlers if isinstance(each, logs.ToStderr)]
    assert [type(each.formatter) for each in ours] == [logs.JsonLines]
    assert file in root.handlers
    file.close()


def test_no_line_of_a_job_steers_the_terminal_that_shows_it() -> None:
    title = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
    record = {"time": "2026-11-26T21:58:36.878Z", "level": "ERROR", "logger": "x", "message": f"a\tb {title}"}
    for line in (json.dumps(record), json.dumps(record | {"exception": f"x\n{title}"}), f"plain {title}", title):
        shown = logs.readable(line)
        assert not {each for each in shown if not each.isprintable()} - {"\n", "\t"}
        assert "\\x1b]0;owned\\x07" in shown
    assert "a\tb" in logs.readable(json.dumps(record))
    assert logs.readable("[" * 200_000) == "[" * 200_000


class SessionFileHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ray Train's, by its name, with a file in memory."""


@pytest.mark.usefixtures("as_before")
def test_loggers_that_keep_records_to_themselves_write_as_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray Train's has a console and files of its own; it logs the tracebacks of ranks."""
    train, file = logging.getLogger("ray.train"), io.StringIO()
    train.handlers[:] = [logging.StreamHandler(sys.stderr), PlainRayHandler(), SessionFileHandler(file)]
    train.propagate = False
    train.setLevel(logging.DEBUG)
    logs.begin("json")
    logs.begin("json")
    train.debug("much")
    train.error("rank 0 failed: %s", SIGNED)
    (record,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert record["message"] == "rank 0 failed: https://host/a.tif"
    assert [json.loads(line)["message"] for line in file.getvalue().splitlines()] == ["much", record["message"]]


@pytest.mark.usefixtures("as_before")
def test_loggers_that_come_later_write_as_the_others_in_a_command_alone() -> None:
    late = logging.getLogger("ray.late")
    late.propagate = False
    late.handlers[:] = [PlainRayHandler()]
    logs.begin_again()
    assert [type(each) for each in late.handlers] == [PlainRayHandler]
    logs.begin("json")
    late.handlers[:] = [PlainRayHandler()]
    logs.begin_again()
    assert [type(each.formatter) for each in late.handlers] == [logs.JsonLines]
    late.handlers.clear()


@pytest.mark.usefixtures("as_before")
def test_a_worker_of_another_program_leaves_its_logging_alone(capsys: pytest.CaptureFixture[str]) -> None:
    root, theirs = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.handlers[:] = [theirs]
    root.setLevel(logging.INFO)
    warn = warnings.showwarning
    for _ in range(2):
        logs.begin_worker(run="a-fold0")
    assert root.handlers == [theirs]
    assert root.level == logging.INFO
    assert warnings.showwarning is warn
    logging.getLogger("raytrain.x").info("ours, %s", SIGNED)
    logging.getLogger("theirs").info("and theirs")
    assert capsys.readouterr().err == "INFO raytrain.x [run=a-fold0]: ours, https://host/a.tif\nand theirs\n"


@pytest.mark.usefixtures("as_before")
def test_workers_write_as_their_driver_does(capsys: pytest.CaptureFixture[str]) -> None:
    logs.begin("text")
    assert logs.for_workers() == {logs.VARIABLE: "text"}
    logs.begin("json")
    assert logs.for_workers() == {logs.VARIABLE: "json"}
    logs.begin_worker(rank=3)
    logging.getLogger("raytrain.cluster.rank").info("here")
    assert json.loads(capsys.readouterr().err)["rank"] == 3


@pytest.mark.usefixtures("as_before")
def test_with_json_a_command_writes_nothing_else_to_stderr(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.console.LOG_EVERY_S", 0.0)
    assert main(["synth", str(tmp_path / "a"), "--count", "2", "--size-px", "32", "--log", "json"]) == 0
    assert main(["synth", "s3://b/a", "--log", "json"]) == 2
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in err.splitlines()]
    assert [record["event"] for record in records] == ["progress", "progress", "step done", "ended"]
    assert (records[0]["done"], records[0]["total"]) == (1, 2)
    assert (records[-1]["level"], records[-1]["exit_code"]) == ("ERROR", 2)
    assert "2 chips" in out  # results are for whoever asked


@pytest.mark.usefixtures("as_before")
def test_an_internal_error_is_a_record_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("raytrain.imagery.synth.write_chips", fail)
    assert main(["synth", "/tmp/never", "--log", "json"]) == 3
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "ZeroDivisionError" in records[0]["exception"]
    assert records[-1]["exit_code"] == 3


@pytest.mark.usefixtures("as_before")
def test_bad_data_are_records_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    logs.begin("json")
    Narrator("json").problems([DataError("chip-1", "torn")], consequence="left out")
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert records[1] | {"subject": "chip-1", "found": "torn", "level": "WARNING"} == records[1]


def test_a_job_of_a_cluster_writes_json_and_any_other_process_text() -> None:
    program = "import sys; from raytrain.cli import job; sys.exit(job('verify'))"
    found = {}
    for name, environment in {"job": {"RAY_ADDRESS": "127.0.0.1:1"}, "none": {}}.items():
        bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", program, "relative/path"],
            env=bare | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        found[name] = done.stderr
    assert json.loads(found["job"])["exit_code"] == 2
    assert found["none"].startswith("raytrain: ")


def test_ray_trains_record_of_a_run_has_no_query_of_an_address() -> None:
    """Its dashboard shows what ranks are given."""
    member = published_members()[0]
    run = RunSettings(member=member, shards=SIGNED, shards_digest="d", fold=0)
    given = {"work": fit._Masked(RankWork(experiment="main", run=run, folder=SIGNED))}
    recorded = json.dumps(_to_json_serializable_value(given))
    assert "https://host/a.tif" in recorded
    assert "abc123" not in recorded
    assert pickle.loads(pickle.dumps(given))["work"].work.run.shards == SIGNED

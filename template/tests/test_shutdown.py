"""On SIGTERM and SIGINT the server turns new work away, lets open streams finish, and ends in time."""

import signal
from concurrent.futures import Future

import pytest

from tests.shutdown import GRACE, OVERDUE, SCENES, STREAMS, Ending, Uvicorn
from tests.stub import TEXT


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def ending(endings: dict[str, Future[Ending]], scene: str) -> Ending:
    return endings[scene].result()


def test_streams_that_end_within_the_grace_arrive_whole(ending: Ending) -> None:
    assert ending.short == {TEXT * 2: STREAMS // 2}


def test_the_other_streams_get_an_error_and_done(ending: Ending) -> None:
    assert ending.endless == {("draining", "data: [DONE]"): STREAMS // 2}


def test_an_answer_that_takes_too_long_is_an_error(ending: Ending) -> None:
    assert (ending.cut.status, ending.cut.body["error"]["code"]) == (503, "draining")


def test_new_work_is_sent_elsewhere(ending: Ending) -> None:
    assert (ending.refused.status, ending.refused.body["error"]["code"]) == (503, "draining")
    assert ending.refused.headers["retry-after"] == "1"
    assert ending.refused.headers["connection"] == "close"


def test_the_process_says_that_it_lives_but_is_not_ready(ending: Ending) -> None:
    assert ending.health.status == 200
    assert ending.ready.status == 503
    assert ending.ready.headers["retry-after"] == "1"
    assert ending.ready.body["failing"] == ["The server is shutting down."]


def test_nothing_hangs(ending: Ending) -> None:
    assert GRACE < ending.last < GRACE + OVERDUE
    assert ending.exited < GRACE + OVERDUE


def test_the_exit_code_is_good(ending: Ending, scene: str) -> None:
    assert ending.code == (-signal.SIGTERM if SCENES[scene].command is Uvicorn else 0)

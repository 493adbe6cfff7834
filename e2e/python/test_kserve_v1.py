"""Predicts with KServe's SDK over the v1 protocol, and compares with ONNX Runtime.

Works on any server that conftest.served describes and that speaks KServe v1.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Served
from kserve import InferenceRESTClient, RESTConfig

Arrays = dict[str, np.ndarray]


def rest(served: Served, act: Callable[[InferenceRESTClient, str], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `act` with a client of v1 and the server's address."""

    async def run() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=120)) as client:
            return await act(client, f"http://{served.http}")

    return asyncio.run(run())


def rows(batch: Arrays) -> list[Any]:
    """The samples of `batch` as v1 wants them: values, or objects where there are several inputs."""
    if len(batch) == 1:
        return next(iter(batch.values())).tolist()
    names, columns = list(batch), [column.tolist() for column in batch.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def predict(served: Served, body: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    """The answer to `body`."""
    model = model or served.model
    return rest(served, lambda client, url: client.infer(url, body, model_name=model))


def predictions(answer: dict[str, Any], expected: Arrays) -> Arrays:
    """The outputs by name in the answer to a request of rows."""
    items = answer["predictions"]
    if len(expected) == 1:
        [(name, wanted)] = expected.items()
        return {name: np.array(items, wanted.dtype)}
    return {
        name: np.array([item[name] for item in items], wanted.dtype) for name, wanted in expected.items()
    }


def test_predictions_equal_onnxruntime(served: Served):
    batch = served.batch()
    expected = served.expected(batch)
    answer = predict(served, {"instances": rows(batch)})
    for name, values in predictions(answer, expected).items():
        served.check(name, values, expected[name])


def test_objects_by_input_name_are_the_same(served: Served):
    batch = served.batch(2)
    expected = served.expected(batch)
    items = [{name: column[row].tolist() for name, column in batch.items()} for row in range(2)]
    answer = predict(served, {"instances": items})
    for name, values in predictions(answer, expected).items():
        served.check(name, values, expected[name])


def test_server_is_alive_and_model_is_ready(served: Served):
    assert rest(served, lambda client, url: client.is_server_live(url)) is True
    assert rest(served, lambda client, url: client.is_model_ready(url, served.model)) is True


def refusal(served: Served, body: dict[str, Any], model: str | None = None) -> tuple[int, str]:
    """Code and text of a request that must fail."""
    with pytest.raises(httpx.HTTPStatusError) as error:
        predict(served, body, model)
    return error.value.response.status_code, str(error.value)


def test_an_unknown_model_is_not_found_by_name(served: Served):
    code, text = refusal(served, {"instances": rows(served.batch(1))}, "no-such-model")
    assert code == 404
    assert "no-such-model" in text.split("for url")[0]
    with pytest.raises(httpx.HTTPStatusError):
        rest(served, lambda client, url: client.is_model_ready(url, "no-such-model"))


@pytest.mark.parametrize(
    "body", [{}, {"instances": []}, {"instances": 1}, {"instances": [[1], [[2]]]}, {"instances": [{"z": 1}]}]
)
def test_a_body_that_is_no_request_is_refused(served: Served, body: dict[str, Any]):
    code, text = refusal(served, body)
    assert code == 400, text
    # The SDK shows the server's text only where it reads it as JSON.
    assert not text.startswith(","), text


def test_explanations_are_not_offered(served: Served):
    with pytest.raises(httpx.HTTPStatusError) as error:
        rest(served, lambda client, url: client.explain(url, served.model, {"instances": []}))
    assert error.value.response.status_code == 501
    assert json.loads(error.value.response.text)["error"]

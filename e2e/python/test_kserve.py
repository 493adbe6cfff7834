"""Predicts with KServe's SDK, over REST v2 and gRPC, and compares with ONNX Runtime.

Works on any server of the Open Inference Protocol that conftest.served describes, on a laptop or
behind a Service. Must not import tritonclient.grpc, whose protobuf symbols are the same.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from conftest import Served
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)

TYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
Arrays = dict[str, np.ndarray]


def request(model: str, batch: Arrays, binary: bool = True) -> InferRequest:
    """The SDK's request with raw tensors, or with values in JSON or typed fields."""
    inputs = []
    for name, rows in batch.items():
        one = InferInput(name, list(rows.shape), TYPES[rows.dtype.name])
        one.set_data_from_numpy(rows, binary_data=binary)
        inputs.append(one)
    return InferRequest(model_name=model, infer_inputs=inputs)


def rest(served: Served, act: Callable[[InferenceRESTClient, str], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `act` with a REST client and the server's address."""

    async def run() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=120)) as client:
            return await act(client, f"http://{served.http}")

    return asyncio.run(run())


def rpc(served: Served, act: Callable[[InferenceGRPCClient], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `act` with a gRPC client."""

    async def run() -> Any:
        async with InferenceGRPCClient(served.grpc, timeout=120) as client:
            return await act(client)

    return asyncio.run(run())


def infer(served: Served, protocol: str, asked: InferRequest) -> InferResponse:
    """The answer over REST or gRPC to a request for its own model."""
    if protocol == "rest":
        return rest(served, lambda client, url: client.infer(url, asked, model_name=asked.model_name))
    return rpc(served, lambda client: client.infer(asked))


both = pytest.mark.parametrize("protocol", ["rest", "grpc"])


@both
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "typed"])
def test_predictions_equal_onnxruntime(served: Served, protocol: str, binary: bool):
    batch = served.batch()
    answer = infer(served, protocol, request(served.model, batch, binary))
    assert answer.model_name == served.model
    expected = served.expected(batch)
    assert [output.name for output in answer.outputs] == list(expected)
    for output in answer.outputs:
        wanted = expected[output.name]
        assert output.datatype == TYPES[wanted.dtype.name]
        values = np.asarray(output.as_numpy()).astype(wanted.dtype, copy=False).reshape(output.shape)
        served.check(output.name, values, wanted)


@both
def test_the_request_id_comes_back(served: Served, protocol: str):
    asked = request(served.model, served.batch(1))
    asked.id = "request-42"
    assert infer(served, protocol, asked).id == "request-42"


def test_server_and_model_are_live_and_ready_over_rest(served: Served):
    assert rest(served, lambda client, url: client.is_server_live(url)) is True
    assert rest(served, lambda client, url: client.is_server_ready(url)) is True
    assert rest(served, lambda client, url: client.is_model_ready(url, served.model)) is True
    assert rest(served, lambda client, url: client.is_model_ready(url, "no-such-model")) is False


def test_server_and_model_are_live_and_ready_over_grpc(served: Served):
    assert rpc(served, lambda client: client.is_server_live()) is True
    assert rpc(served, lambda client: client.is_server_ready()) is True
    assert rpc(served, lambda client: client.is_model_ready(served.model)) is True
    with pytest.raises(grpc.RpcError) as error:
        rpc(served, lambda client: client.is_model_ready("no-such-model"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def refused(served: Served, protocol: str, asked: InferRequest) -> tuple[str, str]:
    """Whether a request that must fail was `not found` or `invalid`, and the text the user sees."""
    with pytest.raises((httpx.HTTPStatusError, grpc.RpcError)) as error:
        infer(served, protocol, asked)
    if protocol == "rest":
        names = {400: "invalid", 404: "not found"}
        return names.get(error.value.response.status_code, "other"), str(error.value)
    names = {grpc.StatusCode.INVALID_ARGUMENT: "invalid", grpc.StatusCode.NOT_FOUND: "not found"}
    return names.get(error.value.code(), "other"), error.value.details()


@both
def test_an_unknown_model_is_not_found_by_name(served: Served, protocol: str):
    kind, text = refused(served, protocol, request("no-such-model", served.batch(1)))
    assert kind == "not found"
    assert "no-such-model" in text.split("for url")[0]


@both
def test_a_wrong_datatype_is_refused_by_name(served: Served, protocol: str):
    batch = served.batch(1)
    name = next(iter(batch))
    other = np.int32 if batch[name].dtype.kind == "f" else np.float32
    kind, text = refused(served, protocol, request(served.model, batch | {name: batch[name].astype(other)}))
    assert kind == "invalid"
    assert name in text


@both
def test_a_wrong_rank_is_refused_by_name(served: Served, protocol: str):
    batch = served.batch(1)
    name = next(iter(batch))
    kind, text = refused(served, protocol, request(served.model, batch | {name: batch[name][..., None]}))
    assert kind == "invalid"
    assert name in text


@both
def test_a_missing_input_is_refused_by_name(served: Served, protocol: str):
    batch = served.batch(1)
    name = next(iter(batch))
    rest_of_it = {other: rows for other, rows in batch.items() if other != name}
    kind, text = refused(served, protocol, request(served.model, rest_of_it))
    assert kind == "invalid"
    assert name in text

"""Predicts with NVIDIA's tritonclient, over HTTP and gRPC, and compares with ONNX Runtime.

Works on any server of the Open Inference Protocol that conftest.served describes, on a laptop or
behind a Service. Must not import kserve, and sends no inference that costs more than a few samples.
"""

import asyncio
import http.client
import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from conftest import Served
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NOT_FOUND = {"http": "404", "grpc": "StatusCode.NOT_FOUND"}
INVALID = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}
UNSUPPORTED = {"http": "501", "grpc": "StatusCode.UNIMPLEMENTED"}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Triton:
    """A connected client and the library it comes from, which have the same shape for both protocols."""

    protocol: str
    library: ModuleType
    client: Any
    served: Served

    def inputs(self, batch: Arrays) -> list[Any]:
        """The library's inputs that hold `batch`."""
        return inputs(self.library, batch)

    def infer(self, batch: Arrays, **options: Any) -> Any:
        """The library's result of one inference on the served model."""
        options.setdefault("model_name", self.served.model)
        return self.client.infer(inputs=self.inputs(batch), **options)

    def outputs(self, *names: str) -> list[Any]:
        """The library's requests for outputs."""
        return [self.library.InferRequestedOutput(name) for name in names]

    def refusal(self, batch: Arrays, **options: Any) -> InferenceServerException:
        """The error of an inference that must fail; it must have a text."""
        with pytest.raises(InferenceServerException) as error:
            self.infer(batch, **options)
        assert error.value.message()
        return error.value


def inputs(library: ModuleType, batch: Arrays) -> list[Any]:
    """The inputs of one of tritonclient's libraries that hold `batch`."""
    made = []
    for name, array in batch.items():
        one = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array)
        made.append(one)
    return made


def check(served: Served, result: Any, expected: Arrays) -> None:
    """Fails unless the result holds every expected output with its values."""
    for name, array in expected.items():
        served.check(name, result.as_numpy(name), array)


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: Served) -> Iterator[Triton]:
    """A client for each protocol."""
    if request.param == "http":
        library, address = tritonclient.http, served.http
        client = library.InferenceServerClient(address, connection_timeout=30, network_timeout=120)
    else:
        library, address = tritonclient.grpc, served.grpc
        client = library.InferenceServerClient(address)
    yield Triton(request.param, library, client, served)
    client.close()


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    """A bare gRPC channel."""
    with grpc.insecure_channel(served.grpc) as made:
        yield made


def test_predictions_equal_onnxruntime(triton: Triton):
    for rows, start in ((1, 0), (4, 8)):
        batch = triton.served.batch(rows, start)
        check(triton.served, triton.infer(batch), triton.served.expected(batch))


def test_predictions_in_json_equal_onnxruntime(served: Served):
    batch = served.batch(2)
    body = {
        "inputs": [
            {"name": name, "shape": rows.shape, "datatype": np_to_triton_dtype(rows.dtype), "data": data}
            for name, rows in batch.items()
            for data in [rows.tolist()]
        ]
    }
    status, answer = post(served, json.dumps(body).encode())
    assert status == 200, answer
    expected = served.expected(batch)
    assert [output["name"] for output in answer["outputs"]] == list(expected)
    for output in answer["outputs"]:
        wanted = expected[output["name"]]
        assert output["datatype"] == np_to_triton_dtype(wanted.dtype)
        values = np.array(output["data"], wanted.dtype).reshape(output["shape"])
        served.check(output["name"], values, wanted)


def test_the_asynchronous_clients_get_the_same_numbers(served: Served):
    async def ask(library: ModuleType, address: str, batch: Arrays) -> Any:
        async with library.InferenceServerClient(address) as client:
            return await client.infer(served.model, inputs(library, batch))

    batch = served.batch()
    for library, address in ((tritonclient.http.aio, served.http), (tritonclient.grpc.aio, served.grpc)):
        check(served, asyncio.run(ask(library, address, batch)), served.expected(batch))


def test_concurrent_requests_each_get_their_own_answer(served: Served):
    async def ask() -> list[Any]:
        async with tritonclient.grpc.aio.InferenceServerClient(served.grpc) as client:
            library = tritonclient.grpc.aio
            calls = [client.infer(served.model, inputs(library, batch)) for batch in batches]
            return await asyncio.gather(*calls)

    batches = [served.batch(1, row) for row in range(16)]
    for batch, result in zip(batches, asyncio.run(ask()), strict=True):
        check(served, result, served.expected(batch))


def test_only_the_requested_output_is_answered(triton: Triton):
    batch = triton.served.batch()
    expected = triton.served.expected(batch)
    name = list(expected)[-1]
    result = triton.infer(batch, outputs=triton.outputs(name))
    triton.served.check(name, result.as_numpy(name), expected[name])
    answer = result.get_response()
    answered = answer["outputs"] if triton.protocol == "http" else answer.outputs
    assert len(answered) == 1


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_answers_hold_the_same_numbers(triton: Triton, algorithm: str):
    if triton.protocol == "http":
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    else:
        options = {"compression_algorithm": algorithm}
    batch = triton.served.batch()
    check(triton.served, triton.infer(batch, **options), triton.served.expected(batch))


def test_the_request_id_comes_back(triton: Triton):
    answer = triton.infer(triton.served.batch(1), request_id="a request, 42").get_response()
    assert (answer["id"] if triton.protocol == "http" else answer.id) == "a request, 42"


def test_a_client_that_gives_up_leaves_the_server_well(served: Served):
    client = tritonclient.grpc.InferenceServerClient(served.grpc)
    batch = served.batch(1)
    with pytest.raises(InferenceServerException) as error:
        client.infer(served.model, inputs(tritonclient.grpc, batch), client_timeout=1e-4)
    assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    result = client.infer(served.model, inputs(tritonclient.grpc, batch))
    check(served, result, served.expected(batch))
    client.close()


def test_priority_and_timeout_of_a_request_are_understood(triton: Triton):
    batch = triton.served.batch(1)
    result = triton.infer(batch, priority=1, timeout=60_000_000)
    check(triton.served, result, triton.served.expected(batch))


def test_the_version_in_the_answer_can_be_asked_for(triton: Triton):
    batch = triton.served.batch(1)
    answer = triton.infer(batch).get_response()
    version = answer["model_version"] if triton.protocol == "http" else answer.model_version
    check(triton.served, triton.infer(batch, model_version=version), triton.served.expected(batch))


def test_server_and_model_are_live_and_ready(triton: Triton):
    assert triton.client.is_server_live()
    assert triton.client.is_server_ready()
    assert triton.client.is_model_ready(triton.served.model)


def test_an_unknown_model_is_not_ready(triton: Triton):
    try:
        assert not triton.client.is_model_ready("no-such-model")
    except InferenceServerException as error:
        assert error.status() == NOT_FOUND[triton.protocol]


def as_dict(triton: Triton, method: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    """A reply as a dictionary, over either protocol."""
    return method(*arguments) if triton.protocol == "http" else method(*arguments, as_json=True)


def test_server_metadata_names_the_server(triton: Triton):
    metadata = as_dict(triton, triton.client.get_server_metadata)
    assert metadata["name"]
    assert metadata["version"]
    assert isinstance(metadata["extensions"], list)


def test_model_metadata_says_what_the_file_says(triton: Triton):
    metadata = as_dict(triton, triton.client.get_model_metadata, triton.served.model)
    assert metadata["name"] == triton.served.model
    assert metadata["versions"]
    session = triton.served.session
    types = {"tensor(int32)": "INT32", "tensor(int64)": "INT64", "tensor(float)": "FP32"}
    for key, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [one["name"] for one in metadata[key]] == [one.name for one in tensors]
        assert [one["datatype"] for one in metadata[key]] == [types[one.type] for one in tensors]
        shapes = [[int(size) for size in one["shape"]] for one in metadata[key]]
        assert shapes == [[s if isinstance(s, int) else -1 for s in one.shape] for one in tensors]


def test_model_configuration_names_the_inputs(triton: Triton):
    reply = as_dict(triton, triton.client.get_model_config, triton.served.model)
    config = reply.get("config", reply)
    assert config["name"] == triton.served.model
    names = [one.name for one in triton.served.session.get_inputs()]
    assert [one["name"] for one in config["input"]] == names


def test_statistics_count_inferences(triton: Triton):
    def count() -> int:
        reply = as_dict(triton, triton.client.get_inference_statistics, triton.served.model)
        [model] = reply["model_stats"]
        assert model["name"] == triton.served.model
        return int(model.get("inference_stats", {}).get("success", {}).get("count", 0))

    before = count()
    triton.infer(triton.served.batch(1))
    # The client keeps one connection, so behind a Service the same replica counts.
    assert count() > before


def test_the_repository_lists_the_model_as_ready(triton: Triton):
    index = as_dict(triton, triton.client.get_model_repository_index)
    models = index if triton.protocol == "http" else index["models"]
    assert {model["name"]: model["state"] for model in models}[triton.served.model] == "READY"


def test_what_is_not_offered_says_so(triton: Triton):
    for method, arguments in (
        (triton.client.register_system_shared_memory, ("region", "/key", 16)),
        (triton.client.get_system_shared_memory_status, ()),
        (triton.client.unload_model, (triton.served.model,)),
    ):
        with pytest.raises(InferenceServerException) as error:
            method(*arguments)
        assert error.value.status() == UNSUPPORTED[triton.protocol], method.__name__


def test_the_served_model_can_be_loaded_and_no_other(triton: Triton):
    triton.client.load_model(triton.served.model)
    with pytest.raises(InferenceServerException) as error:
        triton.client.load_model("no-such-model")
    assert error.value.status() == NOT_FOUND[triton.protocol]
    with pytest.raises(InferenceServerException) as error:
        triton.client.load_model(triton.served.model, config="{}")
    assert error.value.status() == UNSUPPORTED[triton.protocol]


def test_trace_and_log_settings_are_told_and_cannot_be_changed(triton: Triton):
    assert as_dict(triton, triton.client.get_trace_settings)
    assert as_dict(triton, triton.client.get_trace_settings, triton.served.model)
    assert as_dict(triton, triton.client.get_log_settings)
    for method, settings in (
        (triton.client.update_trace_settings, {"trace_level": ["TIMESTAMPS"]}),
        (triton.client.update_log_settings, {"log_verbose_level": 9}),
    ):
        with pytest.raises(InferenceServerException) as error:
            method(settings=settings)
        assert error.value.status() == UNSUPPORTED[triton.protocol], method.__name__
    unchanged = {"trace_level": ["OFF"]}
    assert triton.client.update_trace_settings(settings=unchanged)


def test_classes_are_the_highest_outputs(triton: Triton):
    batch = triton.served.batch(2)
    name, rows = next(
        (name, rows) for name, rows in triton.served.expected(batch).items() if rows.ndim == 2
    )
    wanted = triton.library.InferRequestedOutput(name, class_count=3)
    classes = triton.infer(batch, outputs=[wanted]).as_numpy(name)
    assert classes.shape == (2, min(3, rows.shape[1]))
    for row, texts in zip(rows, classes, strict=True):
        order = np.argsort(-row, kind="stable")[: len(texts)]
        assert [int(text.split(b":")[1]) for text in texts] == order.tolist()
        np.testing.assert_allclose([float(text.split(b":")[0]) for text in texts], row[order], atol=1e-5)


def test_a_stream_answers_each_request(served: Served):
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    batches = [served.batch(1, row) for row in range(4)]
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for row, batch in enumerate(batches):
            sent = inputs(tritonclient.grpc, batch)
            client.async_stream_infer(
                served.model, sent, request_id=str(row), enable_empty_final_response=True
            )
        client.async_stream_infer("no-such-model", inputs(tritonclient.grpc, batches[0]))
        for row, batch in enumerate(batches):
            result, error = answers.get(timeout=60)
            assert error is None
            response = result.get_response()
            assert response.id == str(row)
            assert response.parameters["triton_final_response"].bool_param
            check(served, result, served.expected(batch))
        result, error = answers.get(timeout=60)
        assert "no-such-model" in error.message()
        client.stop_stream()


def test_an_unknown_model_or_version_is_not_found(triton: Triton):
    batch = triton.served.batch(1)
    error = triton.refusal(batch, model_name="no-such-model")
    assert error.status() == NOT_FOUND[triton.protocol]
    assert "no-such-model" in error.message()
    error = triton.refusal(batch, model_version="77")
    assert error.status() == NOT_FOUND[triton.protocol]
    assert "77" in error.message()


def test_an_unknown_output_is_refused_by_name(triton: Triton):
    error = triton.refusal(triton.served.batch(1), outputs=triton.outputs("no-such-output"))
    assert error.status() in (INVALID[triton.protocol], NOT_FOUND[triton.protocol])
    assert "no-such-output" in error.message()


def test_a_missing_or_unknown_input_is_refused_by_name(triton: Triton):
    batch = triton.served.batch(1)
    name = next(iter(batch))
    error = triton.refusal({other: rows for other, rows in batch.items() if other != name})
    assert error.status() == INVALID[triton.protocol]
    assert name in error.message()
    error = triton.refusal(batch | {"no-such-input": batch[name]})
    assert error.status() == INVALID[triton.protocol]
    assert "no-such-input" in error.message()


def test_a_wrong_rank_is_refused_by_name(triton: Triton):
    batch = triton.served.batch(1)
    name = next(iter(batch))
    error = triton.refusal(batch | {name: batch[name][..., None]})
    assert error.status() == INVALID[triton.protocol]
    assert name in error.message()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.bool_, np.object_], ids=lambda d: d.__name__)
def test_a_wrong_datatype_is_refused_by_name(triton: Triton, dtype: type):
    batch = triton.served.batch(1)
    name = next(iter(batch))
    array = batch[name].astype(str).astype(np.object_) if dtype is np.object_ else batch[name].astype(dtype)
    error = triton.refusal(batch | {name: array})
    assert error.status() == INVALID[triton.protocol]
    assert name in error.message()


def test_a_request_over_4_mib_reaches_the_model(triton: Triton):
    # An inference over 4 MiB takes the example models too long, so the proof is that the answer
    # is about the tensor and not about the message's size, gRPC's default limit being 4 MiB.
    batch = triton.served.batch(1)
    name, rows = next(iter(batch.items()))
    error = triton.refusal(batch | {name: np.zeros((1, 2 << 20, *[1] * (rows.ndim - 1)), rows.dtype)})
    assert error.status() == INVALID[triton.protocol]
    assert name in error.message()


def post(
    served: Served, body: bytes, headers: dict[str, str] | None = None, path: str = "infer"
) -> tuple[int, Any]:
    """Status and JSON of a POST below the model; fails when the answer is not JSON."""
    connection = http.client.HTTPConnection(served.http, timeout=60)
    connection.request("POST", f"/v2/models/{served.model}/{path}", body, headers or {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert response.headers["content-type"] == "application/json", text[:200]
    return response.status, json.loads(text)


def binary_request(served: Served, size: Callable[[int], Any]) -> tuple[bytes, bytes]:
    """A request's JSON and tensors, with each tensor's length put through `size`."""
    batch = served.batch(1)
    head = {
        "inputs": [
            {
                "name": name,
                "shape": rows.shape,
                "datatype": np_to_triton_dtype(rows.dtype),
                "parameters": {"binary_data_size": size(rows.nbytes)},
            }
            for name, rows in batch.items()
        ]
    }
    return json.dumps(head).encode(), b"".join(rows.tobytes() for rows in batch.values())


@pytest.mark.parametrize(
    "size",
    [lambda n: n - 4, lambda n: n + 4, lambda n: -n, lambda n: 1 << 62, lambda n: str(n), lambda n: n / 2],
    ids=["short", "long", "negative", "huge", "text", "fraction"],
)
def test_a_lie_about_a_tensors_length_is_refused(served: Served, size: Callable[[int], Any]):
    head, tensors = binary_request(served, size)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, answer = post(served, head + tensors, headers)
    assert status == 400, answer
    assert answer["error"]


@pytest.mark.parametrize("length", ["-1", "99999999", "18446744073709551616", "1.5", "all"])
def test_a_lie_about_the_headers_length_is_refused(served: Served, length: str):
    head, tensors = binary_request(served, int)
    status, answer = post(served, head + tensors, {"Inference-Header-Content-Length": length})
    assert status == 400, answer
    assert answer["error"]


def test_bytes_after_the_last_tensor_are_refused(served: Served):
    head, tensors = binary_request(served, int)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert post(served, head + tensors, headers)[0] == 200
    status, answer = post(served, head + tensors + b"more", headers)
    assert status == 400, answer


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"inputs": 1}', b"\xff\xfe"])
def test_a_body_that_is_no_request_is_refused(served: Served, body: bytes):
    status, answer = post(served, body)
    assert status == 400, answer
    assert answer["error"]


def test_a_body_that_is_not_compressed_as_it_says_is_refused(served: Served):
    for encoding, code in (("gzip", 400), ("deflate", 400), ("br", 415)):
        status, answer = post(served, b'{"inputs": []}', {"Content-Encoding": encoding})
        assert status in (400, code), answer
        assert answer["error"]


def raw_request(served: Served) -> service_pb2.ModelInferRequest:
    """A gRPC request without tensors' values."""
    request = service_pb2.ModelInferRequest(model_name=served.model)
    for name, rows in served.batch(1).items():
        request.inputs.add(name=name, shape=rows.shape, datatype=np_to_triton_dtype(rows.dtype))
    return request


def fill_typed(request: service_pb2.ModelInferRequest, served: Served) -> None:
    """Puts the values into the typed fields, as clients without raw contents do."""
    fields = {"INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents"}
    for one, rows in zip(request.inputs, served.batch(1).values(), strict=True):
        getattr(one.contents, fields[one.datatype]).extend(rows.ravel().tolist())


def test_typed_contents_give_the_same_numbers(served: Served, channel: grpc.Channel):
    request = raw_request(served)
    fill_typed(request, served)
    answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert len(answer.raw_output_contents) == len(answer.outputs)
    expected = served.expected(served.batch(1))
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        wanted = expected[output.name]
        served.check(output.name, np.frombuffer(raw, wanted.dtype).reshape(output.shape), wanted)


@pytest.mark.parametrize("lie", ["mixed", "short", "long", "missing", "surplus"])
def test_a_grpc_request_that_contradicts_itself_is_refused(served: Served, channel: grpc.Channel, lie: str):
    request = raw_request(served)
    raw = [rows.tobytes() for rows in served.batch(1).values()]
    if lie == "mixed":
        fill_typed(request, served)
    elif lie == "short":
        raw[-1] = raw[-1][:-4]
    elif lie == "long":
        raw[-1] += bytes(4)
    elif lie == "missing":
        raw.pop()
    else:
        raw.append(b"more")
    request.raw_input_contents.extend(raw)
    with pytest.raises(grpc.RpcError) as error:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details()


def test_the_standard_health_service_says_serving(served: Served, channel: grpc.Channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_inference_service(channel: grpc.Channel):
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "inference.GRPCInferenceService" in services
    assert "grpc.health.v1.Health" in services

"""Predicts with TensorFlow Serving's own client, over gRPC and REST, and compares with ONNX Runtime.

Works on any server that conftest.served describes and that speaks TensorFlow Serving. Tensors are
made by hand as tf.make_tensor_proto makes them, since TensorFlow itself is not here.
"""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import Served
from google.protobuf import any_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

Arrays = dict[str, np.ndarray]

# numpy's type: TensorFlow's type and the field in which its values travel.
TYPES = {
    "float32": (types_pb2.DT_FLOAT, "float_val"),
    "float64": (types_pb2.DT_DOUBLE, "double_val"),
    "int32": (types_pb2.DT_INT32, "int_val"),
    "int64": (types_pb2.DT_INT64, "int64_val"),
    "bool": (types_pb2.DT_BOOL, "bool_val"),
}


def tensor_proto(array: np.ndarray, typed: bool = False) -> tensor_pb2.TensorProto:
    """What tf.make_tensor_proto makes: content for more than one element, else a typed value."""
    dtype, field = TYPES[array.dtype.name]
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.size > 1 and not typed:
        proto.tensor_content = array.tobytes()
    else:
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


def array_of(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """What tf.make_ndarray makes of a proto."""
    [(name, field)] = [(name, field) for name, (dtype, field) in TYPES.items() if dtype == proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, name).reshape(shape)
    return np.array(getattr(proto, field), name).reshape(shape)


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    """A channel with gRPC's own limits lifted, as for large tensors."""
    with grpc.insecure_channel(served.grpc, [("grpc.max_receive_message_length", -1)]) as made:
        yield made


@pytest.fixture
def prediction(channel: grpc.Channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    """The client of the prediction service."""
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def models(channel: grpc.Channel) -> model_service_pb2_grpc.ModelServiceStub:
    """The client of the model service."""
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(served: Served, batch: Arrays, typed: bool = False) -> predict_pb2.PredictRequest:
    """A PredictRequest with a ModelSpec."""
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name = served.model
    asked.model_spec.signature_name = "serving_default"
    for name, array in batch.items():
        asked.inputs[name].CopyFrom(tensor_proto(array, typed))
    return asked


def code_of(call: Any, asked: Any) -> tuple[grpc.StatusCode, str]:
    """Code and text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as error:
        call(asked)
    assert error.value.details()
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("typed", [False, True], ids=["content", "values"])
def test_predictions_equal_onnxruntime(served: Served, prediction: Any, typed: bool):
    for rows, start in ((1, 0), (4, 8)):
        batch = served.batch(rows, start)
        answer = prediction.Predict(request(served, batch, typed), timeout=60)
        expected = served.expected(batch)
        assert set(answer.outputs) == set(expected)
        for name, wanted in expected.items():
            served.check(name, array_of(answer.outputs[name]), wanted)


def test_the_answer_names_the_resolved_version_and_signature(served: Served, prediction: Any):
    asked = request(served, served.batch(1))
    asked.model_spec.signature_name = ""
    spec = prediction.Predict(asked, timeout=60).model_spec
    assert (spec.name, spec.signature_name) == (served.model, "serving_default")
    assert spec.version.value > 0
    asked.model_spec.version.value = spec.version.value
    assert prediction.Predict(asked, timeout=60).outputs


def test_only_the_filtered_output_is_answered(served: Served, prediction: Any):
    batch = served.batch(1)
    name = list(served.expected(batch))[-1]
    asked = request(served, batch)
    asked.output_filter.append(name)
    assert list(prediction.Predict(asked, timeout=60).outputs) == [name]


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_hold_the_same_numbers(served: Served, prediction: Any, algorithm: Any):
    batch = served.batch()
    answer = prediction.Predict(request(served, batch), timeout=60, compression=algorithm)
    for name, wanted in served.expected(batch).items():
        served.check(name, array_of(answer.outputs[name]), wanted)


def test_the_last_value_stands_for_the_missing_ones(served: Served, prediction: Any):
    batch = {name: np.full_like(array, array.flat[0]) for name, array in served.batch(2).items()}
    asked = request(served, batch)
    for name, array in batch.items():
        proto = asked.inputs[name]
        proto.ClearField("tensor_content")
        getattr(proto, TYPES[array.dtype.name][1]).append(array.flat[0].item())
    answer = prediction.Predict(asked, timeout=60)
    for name, wanted in served.expected(batch).items():
        served.check(name, array_of(answer.outputs[name]), wanted)


def test_metadata_says_what_the_file_says(served: Served, prediction: Any):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = served.model
    answer = prediction.GetModelMetadata(asked, timeout=60)
    packed = answer.metadata["signature_def"]
    assert isinstance(packed, any_pb2.Any)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert packed.Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    names = {"tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(float)": "float32"}
    for tensors, declared in (
        (signature.inputs, served.session.get_inputs()),
        (signature.outputs, served.session.get_outputs()),
    ):
        assert set(tensors) == {one.name for one in declared}
        for one in declared:
            assert tensors[one.name].dtype == TYPES[names[one.type]][0]
            sizes = [dim.size for dim in tensors[one.name].tensor_shape.dim]
            assert sizes == [size if isinstance(size, int) else -1 for size in one.shape]
    asked.metadata_field[0] = "something"
    assert code_of(prediction.GetModelMetadata, asked)[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_the_version_is_available(served: Served, models: Any):
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = served.model
    [version] = models.GetModelStatus(asked, timeout=60).model_version_status
    assert version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert version.status.error_code == 0
    asked.model_spec.name = "no-such-model"
    code, text = code_of(models.GetModelStatus, asked)
    assert code == grpc.StatusCode.NOT_FOUND
    assert "no-such-model" in text


def test_the_list_of_models_cannot_be_replaced(models: Any):
    asked = model_management_pb2.ReloadConfigRequest()
    asked.config.model_config_list.config.add(name="other", base_path="/tmp", model_platform="tensorflow")
    code, text = code_of(models.HandleReloadConfigRequest, asked)
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert "ModelDeployment" in text


def refused(served: Served, lie: str) -> predict_pb2.PredictRequest:
    """A request that must be refused."""
    batch = served.batch(1)
    asked = request(served, batch)
    name = next(iter(batch))
    proto = asked.inputs[name]
    if lie == "model":
        asked.model_spec.name = "no-such-model"
    elif lie == "version":
        asked.model_spec.version.value = 77
    elif lie == "label":
        asked.model_spec.version_label = "no-such-label"
    elif lie == "signature":
        asked.model_spec.signature_name = "no-such-signature"
    elif lie == "missing":
        del asked.inputs[name]
    elif lie == "unknown":
        asked.inputs["no-such-input"].CopyFrom(proto)
    elif lie == "output":
        asked.output_filter.append("no-such-output")
    elif lie == "type":
        proto.dtype = types_pb2.DT_DOUBLE
    elif lie == "rank":
        proto.tensor_shape.dim.add(size=1)
    elif lie == "short":
        proto.tensor_content = proto.tensor_content[:-1]
    elif lie == "huge":
        proto.ClearField("tensor_content")
        proto.tensor_shape.dim[0].size = 1 << 50
    elif lie == "negative":
        proto.tensor_shape.dim[0].size = -1
    return asked


@pytest.mark.parametrize(
    ("lie", "code", "words"),
    [
        ("model", "NOT_FOUND", "no-such-model"),
        ("version", "NOT_FOUND", "77"),
        ("label", "NOT_FOUND", "no-such-label"),
        ("signature", "INVALID_ARGUMENT", 'Serving signature name: "no-such-signature" not found'),
        ("missing", "INVALID_ARGUMENT", "input size does not match signature"),
        ("unknown", "INVALID_ARGUMENT", "no-such-input"),
        ("output", "INVALID_ARGUMENT", "no-such-output"),
        ("type", "INVALID_ARGUMENT", "DT_DOUBLE"),
        ("rank", "INVALID_ARGUMENT", "shape"),
        ("short", "INVALID_ARGUMENT", "bytes"),
        ("huge", "RESOURCE_EXHAUSTED", "takes more than"),
        ("negative", "INVALID_ARGUMENT", "negative"),
    ],
)
def test_what_cannot_be_right_is_refused_in_its_own_words(
    served: Served, prediction: Any, lie: str, code: str, words: str
):
    seen, text = code_of(prediction.Predict, refused(served, lie))
    assert seen == grpc.StatusCode[code], text
    assert words in text


def test_a_client_that_gives_up_leaves_the_server_well(served: Served, prediction: Any):
    asked = request(served, served.batch(1))
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(asked, timeout=1e-4)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert prediction.Predict(asked, timeout=60).outputs


def examples(batch: Arrays, into: Any) -> None:
    """Fills a list of tf.Example with the rows of `batch`."""
    for row in range(len(next(iter(batch.values())))):
        example = into.example_list.examples.add()
        for name, column in batch.items():
            feature = example.features.feature[name]
            if column.dtype.kind == "f":
                feature.float_list.value.extend(column[row].ravel().tolist())
            else:
                feature.int64_list.value.extend(column[row].ravel().tolist())


def scores(served: Served, batch: Arrays) -> np.ndarray | None:
    """What Classify should score, or None where the model's outputs are no classes."""
    outputs = list(served.expected(batch).values())
    if len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].dtype.kind == "f":
        return outputs[0]
    return None


def test_examples_are_classified_with_the_models_own_scores(served: Served, prediction: Any):
    batch = served.batch(3)
    expected = scores(served, batch)
    asked = classification_pb2.ClassificationRequest()
    asked.model_spec.name = served.model
    examples(batch, asked.input)
    if expected is None:
        assert code_of(prediction.Classify, asked)[0] == grpc.StatusCode.INVALID_ARGUMENT
        return
    rows = prediction.Classify(asked, timeout=60).result.classifications
    values = np.array([[one.score for one in row.classes] for row in rows], expected.dtype)
    served.check("scores", values, expected)
    assert [one.label for one in rows[0].classes] == [str(n) for n in range(expected.shape[1])]
    both = inference_pb2.MultiInferenceRequest(input=asked.input)
    both.tasks.add(method_name="tensorflow/serving/classify", model_spec=asked.model_spec)
    [result] = prediction.MultiInference(both, timeout=60).results
    assert result.classification_result.classifications == rows


def rest(served: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of a request below the model."""
    connection = http.client.HTTPConnection(served.http, timeout=60)
    text = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, f"/v1/models/{served.model}{path}", text)
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, json.loads(raw)


def test_rest_rows_and_columns_give_the_same_numbers(served: Served):
    batch = served.batch()
    expected = served.expected(batch)
    names = list(batch)
    columns: Any = {name: array.tolist() for name, array in batch.items()}
    rows: Any = [{name: columns[name][row] for name in names} for row in range(4)]
    bodies = [{"instances": rows}, {"inputs": columns}]
    if len(names) == 1:
        bodies += [{"instances": columns[names[0]]}, {"inputs": columns[names[0]]}]
    for body in bodies:
        status, answer = rest(served, "POST", ":predict", body)
        assert status == 200, answer
        items = answer.get("predictions", answer.get("outputs"))
        for name, wanted in expected.items():
            if len(expected) == 1:
                values = items
            elif "outputs" in answer:
                values = items[name]
            else:
                values = [item[name] for item in items]
            served.check(name, np.array(values, wanted.dtype), wanted)


def test_rest_tells_status_and_metadata(served: Served):
    status, answer = rest(served, "GET", "")
    assert status == 200
    [version] = answer["model_version_status"]
    assert version["state"] == "AVAILABLE"
    assert version["status"] == {"error_code": "OK", "error_message": ""}
    assert rest(served, "GET", f"/versions/{version['version']}")[0] == 200
    status, answer = rest(served, "GET", "/metadata")
    assert status == 200
    assert answer["model_spec"]["name"] == served.model
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert set(signature["inputs"]) == {one.name for one in served.session.get_inputs()}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (":predict", b"{", 400),
        (":predict", {}, 400),
        (":predict", {"instances": [], "inputs": []}, 400),
        (":predict", {"signature_name": "z", "instances": [1]}, 400),
        (":predict", {"instances": [{"no-such-input": 1}]}, 400),
        ("/versions/77:predict", {"instances": [1]}, 404),
        ("/labels/no-such-label:predict", {"instances": [1]}, 404),
        (":no-such-verb", {}, 404),
        (":classify", {"instances": [1]}, 400),
        (":regress", {"examples": []}, 400),
    ],
)
def test_rest_refuses_with_its_code_and_an_error(served: Served, path: str, body: Any, code: int):
    status, answer = rest(served, "POST", path, body)
    assert status == code, answer
    assert answer["error"]


def test_health_and_reflection_know_the_services(channel: grpc.Channel):
    names = [service.full_name for service in prediction_service_pb2.DESCRIPTOR.services_by_name.values()]
    assert names == ["tensorflow.serving.PredictionService"]
    stub = health_pb2_grpc.HealthStub(channel)
    for name in [*names, "tensorflow.serving.ModelService"]:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {*names, "tensorflow.serving.ModelService"} <= set(found)


def test_the_messages_are_the_clients_own(channel: grpc.Channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    own = predict_pb2.DESCRIPTOR.pool
    for name in (
        "tensorflow.serving.PredictRequest",
        "tensorflow.serving.PredictResponse",
        "tensorflow.serving.ClassificationRequest",
        "tensorflow.serving.MultiInferenceRequest",
        "tensorflow.serving.InferenceResult",
        "tensorflow.serving.GetModelMetadataResponse",
        "tensorflow.serving.ModelVersionStatus",
        "tensorflow.serving.ModelSpec",
        "tensorflow.TensorProto",
        "tensorflow.TensorShapeProto",
        "tensorflow.Feature",
        "tensorflow.TensorInfo",
        "tensorflow.SignatureDef",
    ):
        reference = own.FindMessageTypeByName(name)
        file = database.FindFileContainingSymbol(name)
        *_, short = name.split(".")
        [ours] = [message for message in file.message_type if message.name == short]
        for field in ours.field:
            known = reference.fields_by_number[field.number]
            assert (known.name, known.type) == (field.name, field.type), f"{name}.{field.name}"


def test_the_model_spec_of_the_client_is_read(served: Served, prediction: Any):
    spec = model_pb2.ModelSpec(name=served.model)
    asked = request(served, served.batch(1))
    asked.model_spec.CopyFrom(spec)
    assert prediction.Predict(asked, timeout=60).outputs

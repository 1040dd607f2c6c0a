"""The description of the server at /openapi.json, in OpenAPI 3.1."""

from collections.abc import Sequence

from convzoo.plain import JsonObject, JsonValue
from convzoo.serve import protocol
from convzoo.version import __version__

Schema = JsonObject
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
BYTES = {"application/octet-stream": {}}


def document(names: Sequence[str], replaceable: bool) -> Schema:
    """Return the description of a server with models of these names."""
    name: Schema = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(names)}}
    version: Schema = {"name": "version", "in": "path", "required": True, "schema": {"enum": ["1"]}}
    fraction: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    min_score: Schema = {"name": "min_score", "in": "query", "description": "Leave out boxes with less."}
    model, versions = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    paths = {
        "/openapi.json": {"get": _operation("This document", {"type": "object"})},
        "/metrics": {"get": _operation("Counters for Prometheus", TEXT, media="text/plain")},
        "/models": {"get": _operation("What is served, for people", _array(_CARD))},
        "/v2": {"get": _operation("The server's metadata", _ref("Server"))},
        "/v2/health/live": {"get": _operation("Whether the server runs", _object(live=FLAG))},
        "/v2/health/ready": {"get": _operation("Whether it takes requests", _object(ready=FLAG), [503])},
        "/predict/{name}": {"post": _predict([name, {**min_score, "schema": fraction}])},
        "/explain/{name}": {"post": _explain([name])},
    }
    for path, parameters in ((model, [name]), (versions, [name, version])):
        paths[path] = {"get": _operation("A model's metadata", _ref("Model"), [404], parameters)}
        ready = _operation("Whether a model is ready", _object(name=TEXT, ready=FLAG), [404], parameters)
        paths[f"{path}/ready"] = {"get": ready}
        paths[f"{path}/infer"] = {"post": _infer(parameters)}
    if replaceable:
        replaced = _object(name=TEXT, version=TEXT, sha256=TEXT)
        operation = _operation("Open a model's file again", replaced, [404, 422], [name])
        paths["/models/{name}"] = {"post": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "convzoo serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _object(optional: Sequence[str] = (), **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TENSOR = _object(name=TEXT, datatype={"enum": list(protocol.DTYPES)}, shape=_array(COUNT))
_CLASS = _object(["title"], **{"class": TEXT, "title": TEXT, "score": NUMBER})
_BOX = _object(["title"], **_CLASS["properties"], box_xyxy={**_array(NUMBER), "minItems": 4, "maxItems": 4})
_CARD = _object(
    name=TEXT,
    network=TEXT,
    runtime=TEXT,
    size_bytes={"type": ["integer", "null"]},
    predicts={"enum": ["classes", "boxes"]},
    classes=COUNT,
    input_hw={"type": ["array", "null"], "items": COUNT},
    explains=FLAG,
    sha256=TEXT,
)


def _schemas() -> Schema:
    classes = _object(["title"], path=TEXT, **_CLASS["properties"], classes=_array(_CLASS))
    boxes = _object(path=TEXT, width=COUNT, height=COUNT, detections=_array(_BOX))
    failure = _object(path=TEXT, error=TEXT)
    question = protocol.InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    output = _object(
        ["data", "parameters"], **_TENSOR["properties"], data=_array(NUMBER), parameters={"type": "object"}
    )
    return {
        **question.pop("$defs"),
        "InferRequest": question,
        "InferResponse": _object(["id"], model_name=TEXT, model_version=TEXT, id=TEXT, outputs=_array(output)),
        "Server": _object(name=TEXT, version=TEXT, extensions=_array(TEXT)),
        "Model": _object(
            name=TEXT, versions=_array(TEXT), platform=TEXT, inputs=_array(_TENSOR), outputs=_array(_TENSOR)
        ),
        "Row": {"anyOf": [classes, boxes]},
        "Rows": _array({"anyOf": [classes, boxes, failure]}),
        "Error": _object(error=TEXT),
    }


def _operation(
    summary: str,
    answer: Schema,
    errors: Sequence[int] = (),
    parameters: Sequence[Schema] = (),
    media: str = "application/json",
    **more: JsonValue,
) -> Schema:
    error = {"content": {"application/json": {"schema": _ref("Error")}}}
    responses = {
        "200": {"description": "the answer", "content": {media: {"schema": answer}}},
        **{str(status): {"description": _ERRORS[status], **error} for status in errors},
        "default": {"description": "401 without the token, 403, 421, 500", **error},
    }
    return {"summary": summary, "parameters": list(parameters), "responses": responses, **more}


_ERRORS = {
    400: "not a request of this kind",
    404: "no such model",
    413: "the body is too large",
    422: "a picture or a tensor that cannot be taken",
    429: "too many requests wait",
    503: "no answer in time",
}
_ASKING = tuple(_ERRORS)


def _predict(parameters: Sequence[Schema]) -> Schema:
    file = {"type": "string", "format": "binary"}
    form = _object(file=_array(file))
    content = {"image/jpeg": {}, "image/png": {}, "multipart/form-data": {"schema": form}}
    answer = {"anyOf": [_ref("Row"), _ref("Rows")]}
    body = {"required": True, "content": content}
    return _operation("What pictures show", answer, _ASKING, parameters, requestBody=body)


def _explain(parameters: Sequence[Schema]) -> Schema:
    class_ = {"name": "class", "in": "query", "schema": TEXT}
    box = {"name": "box", "in": "query", "schema": TEXT, "description": "x1,y1,x2,y2 in pixels of the picture"}
    body = {"required": True, "content": {"image/jpeg": {}, "image/png": {}}}
    asked = [*parameters, class_, box]
    return _operation("What speaks for a class", {}, _ASKING, asked, media="image/png", requestBody=body)


def _infer(parameters: Sequence[Schema]) -> Schema:
    content = {"application/json": {"schema": _ref("InferRequest")}, **BYTES}
    header = {"name": protocol.JSON_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0}}
    body = {"required": True, "content": content}
    operation = _operation(
        "A tensor in, tensors out", _ref("InferResponse"), _ASKING, [*parameters, header], requestBody=body
    )
    operation["responses"]["200"]["content"] |= BYTES
    return operation

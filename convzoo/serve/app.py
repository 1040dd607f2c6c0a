"""The HTTP application: its routes, and what each does."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, ExceptionHandler

from convzoo.data.decode import decode_rgb
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.inference.explain import explain
from convzoo.inference.predict import MIN_SCORE
from convzoo.report.draw import heat_layer
from convzoo.serve import openapi, protocol
from convzoo.serve.batching import Run
from convzoo.serve.gate import Gate, refused, said
from convzoo.serve.limits import Limits, Refusal
from convzoo.serve.metrics import Metrics
from convzoo.serve.models import Models, Pool, ServedModel
from convzoo.serve.requests import House, fraction, is_form, label_and_box, pictures, unless_gone
from convzoo.version import __version__

T = TypeVar("T")
STATIC = Path(__file__).with_name("static")


class Service:
    """The endpoints: each takes a request and returns the response."""

    def __init__(self, models: Models, limits: Limits, metrics: Metrics, replaceable: bool = False):
        self.models, self.limits, self.metrics, self.replaceable = models, limits, metrics, replaceable
        self.house, self.pool, self.draining = House(limits, metrics), Pool(), False

    def routes(self) -> list[Route | Mount]:
        """Return every path that is served; `openapi` describes the same ones, which a test holds."""
        get: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/", self.page),
            ("/openapi.json", self.description),
            ("/metrics", self.prometheus),
            ("/models", self.cards),
            ("/v2", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/v2/models/{name}", self.metadata),
            ("/v2/models/{name}/ready", self.model_ready),
            ("/v2/models/{name}/versions/{version}", self.metadata),
            ("/v2/models/{name}/versions/{version}/ready", self.model_ready),
        ]
        post = [
            ("/predict/{name}", self.predict),
            ("/explain/{name}", self.explain),
            ("/v2/models/{name}/infer", self.infer),
            ("/v2/models/{name}/versions/{version}/infer", self.infer),
            *([("/models/{name}", self.replace)] if self.replaceable else []),
        ]
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post),
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ]

    def _model(self, request: Request) -> ServedModel:
        model = self.models.get(request.path_params["name"], request.path_params.get("version"))
        request.scope["model"] = model.name
        return model

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def description(self, request: Request) -> Response:
        return JSONResponse(openapi.document([model.name for model in self.models], self.replaceable))

    async def prometheus(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def cards(self, request: Request) -> Response:
        return JSONResponse([model.card for model in self.models])

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": "convzoo", "version": __version__, "extensions": protocol.EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        return JSONResponse({"ready": not self.draining}, 503 if self.draining else 200)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._model(request).metadata)

    async def model_ready(self, request: Request) -> Response:
        return JSONResponse({"name": self._model(request).name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Answer the protocol's question: one tensor in, the model's outputs out."""
        model = self._model(request)
        async with self.house.body(request, model) as body:
            return await unless_gone(request, self._inferred(model, body, request.headers.get(protocol.JSON_LENGTH)))

    async def _inferred(self, model: ServedModel, body: bytes, json_length: str | None) -> Response:
        question, array = await self.pool(protocol.parse, body, json_length)
        if question.inputs[0].name != model.input.name:
            raise Refusal(400, f"input {question.inputs[0].name:.40}: the model's is {model.input.name}")
        choices = protocol.chosen(question, model.outputs)
        run = await model.run(model.images_of(question.inputs[0].datatype, array))
        head = {"model_name": model.name, "model_version": model.version}
        head |= {} if question.id is None else {"id": question.id}
        outputs = [torch.as_tensor(output).numpy() for output in run.outputs]
        content, json_length_out = await self.pool(protocol.render, head, outputs, choices)
        headers = {} if json_length_out is None else {protocol.JSON_LENGTH: str(json_length_out)}
        media = "application/json" if json_length_out is None else "application/octet-stream"
        return Response(content, headers=headers, media_type=media)

    async def predict(self, request: Request) -> Response:
        """Answer pictures: a body with one row, a form with a list of rows, in which a bad picture has an error."""
        model, min_score = self._model(request), fraction(request, "min_score", MIN_SCORE)
        async with self.house.body(request, model) as body:
            files = await pictures(request, body, self.limits)
            asked = [model.predict(self.pool, content, name, min_score) for name, content in files]
            results = await unless_gone(request, _all(asked))
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, DataError):
                raise result
        rows = [
            {"path": name, "error": str(result)} if isinstance(result, BaseException) else result[0]
            for (name, _), result in zip(files, results, strict=True)
        ]
        runs = [result[1] for result in results if not isinstance(result, BaseException)]
        if not runs:
            raise Refusal(422, rows[0]["error"])
        return JSONResponse(rows if is_form(request) else rows[0], headers={"Server-Timing": _timing(runs)})

    async def explain(self, request: Request) -> Response:
        """Answer a picture with the heat of a class, or of a box's class, as a PNG to lay over it."""
        model = self._model(request)
        label, box = label_and_box(request, model.opened.class_names)
        async with self.house.body(request, model) as body:
            image = await self.pool(decode_rgb, body, "body", self.limits.pixels)
            asked = model.batcher.alone(lambda: explain(model.opened, image, label, box))
            layer = heat_layer(await unless_gone(request, asked))
        buffer = io.BytesIO()
        layer.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    async def replace(self, request: Request) -> Response:
        """Open a model's file again."""
        name = self._model(request).name
        try:
            model = await self.models.replace(name, self.pool)
        except ConvzooError as error:
            raise Refusal(422, f"{error}; the model before it goes on") from None
        return JSONResponse({"name": model.name, "version": model.version, "sha256": model.opened.sha256})


async def _all(asked: Sequence[Awaitable[T]]) -> Sequence[T | BaseException]:
    return await asyncio.gather(*asked, return_exceptions=True)


def _timing(runs: Sequence[Run]) -> str:
    longest = max(runs, key=lambda run: run.waited_s + run.run_s)
    return f"queue;dur={1e3 * longest.waited_s:.2f}, run;dur={1e3 * longest.run_s:.2f}"


def build(service: Service, hosts: set[str] | None = None, token: str | None = None) -> ASGIApp:
    """Return the application behind its gate; hosts and token as `Gate` has them."""
    handlers: dict[type[Exception], ExceptionHandler] = {
        Refusal: _sync(lambda error: refused(error)),
        UsageError: _sync(lambda error: said(str(error), 400)),
        DataError: _sync(lambda error: said(str(error), 422)),
        ConvzooError: _sync(lambda error: said(str(error), 500)),
        HTTPException: _sync(lambda error: said(str(error.detail), error.status_code, error.headers)),
        ClientDisconnect: _sync(lambda error: Response(status_code=499)),
        Exception: _sync(lambda error: said("the server failed; its log says where", 500)),
    }
    return Gate(Starlette(routes=service.routes(), exception_handlers=handlers), service.metrics, hosts, token)


def _sync(answer: Callable[[Any], Response]) -> ExceptionHandler:  # Any: each takes its own error
    async def handler(request: Request, error: Exception) -> Response:
        return answer(error)

    return handler

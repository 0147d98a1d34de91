"""A client of the admin API that holds every answer to the OpenAPI document, and notes what it asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
from jsonschema import Draft202012Validator

from broker.auth.admin import TOKEN_FILE
from tests.support.raw import open_raw
from tests.web.harness import head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.harness import Answer


@attrs.define(eq=False)
class Admin:
    """The API of a running broker. `asked` has each operation that was answered."""

    url: str
    token: str
    document: dict[str, Any] = attrs.Factory(dict)
    asked: set[str] = attrs.Factory(set)

    @classmethod
    async def of(cls, url: str, data_dir: Path) -> Admin:
        admin = cls(url, (data_dir / TOKEN_FILE).read_text().strip())
        admin.document = json.loads((await admin.send("GET", "/api/openapi.json")).body)
        return admin

    async def send(self, method: str, target: str, body: str | bytes = b"") -> Answer:
        data = body.encode() if isinstance(body, str) else body
        headers: dict[str, Any] = {"host": "localhost", "upgrade": None, "connection": None}
        length = str(len(data)) if data else None
        authorization = f"Bearer {self.token}"
        request = head(target, method=method, authorization=authorization, content_length=length, **headers)
        async with open_raw(self.url) as client:
            await client.send(request + data)
            return await client.answer()

    async def ask(self, method: str, target: str, body: str | bytes = b"", *, status: int = 200) -> Any:
        """The document that comes back with this status, which fits its schema."""
        target = target if target.startswith("/api/") else f"/api/v1{target}"
        answer = await self.send(method, target, body)
        assert answer.status == status, answer.body
        operation = self.operation(method, target)
        found = operation["responses"].get(str(status)) or operation["responses"]["default"]
        (media_type, content), *_ = found["content"].items()
        assert answer.headers["content-type"] == media_type
        document = json.loads(answer.body)
        schema = {**content["schema"], "components": self.document["components"]}
        Draft202012Validator(schema).validate(document)
        if status < 400:
            self.asked.add(operation["operationId"])
        return document

    def operation(self, method: str, target: str) -> dict[str, Any]:
        path = target.partition("?")[0]
        for template, methods in self.document["paths"].items():
            pairs = list(zip(template.split("/"), path.split("/"), strict=False))
            if template.count("/") == path.count("/") and all(a == b or a[:1] == "{" for a, b in pairs):
                operation: dict[str, Any] = methods[method.lower()]
                return operation
        raise AssertionError(f"{path} is not documented")

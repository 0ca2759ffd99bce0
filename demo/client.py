"""What a chat client and an operator see of the server, over plain HTTP."""

import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.process import HOST, DemoError

TIMEOUT_S = 300
DROP_TIMEOUT_S = 20
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One chat completion."""

    text: str
    ttft_s: float
    """From sending the request to its first streamed chunk."""

    prompt_tokens: int
    cached_tokens: int


class Client:
    """Talks to one server; a connection per request, as a load balancer would."""

    def __init__(self, port: int) -> None:
        self._port = port

    def chat(self, messages: Sequence[Message], num_tokens: int, salt: str = "") -> Answer:
        """Ask for a greedy answer of `num_tokens`; `salt` isolates the cache, as for a tenant."""
        request = {
            "model": "demo",
            "messages": messages,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if salt:
            request["cache_salt"] = salt
        begin = time.perf_counter()
        chunks = _server_sent_events(self._open("POST", "/v1/chat/completions", request))
        first = next(chunks, {})
        ttft_s = time.perf_counter() - begin
        received = [first, *chunks]
        usage = received[-1].get("usage")
        if not usage:
            raise ConnectionError("the answer broke off")
        return Answer(
            text="".join(_text_of(chunk) for chunk in received),
            ttft_s=ttft_s,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0,
        )

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt that the server makes of `messages`."""
        reply = self._open("POST", "/tokenize", {"model": "demo", "messages": messages})
        return list(json.load(reply)["tokens"])

    def drop_engine_cache(self) -> None:
        """Make vLLM forget its own prefix cache, and nothing else; waits for pages in use."""
        end_s = time.monotonic() + DROP_TIMEOUT_S
        while not json.load(self._open("POST", "/reset_prefix_cache"))["success"]:
            if time.monotonic() > end_s:
                msg = (
                    f"vLLM did not drop its prefix cache: pages were in use for {DROP_TIMEOUT_S} s"
                )
                raise DemoError(msg)
            time.sleep(0.1)

    def metrics(self) -> dict[str, float]:
        """Return what is not zero; labels are part of the name, without engine and model."""
        text = self._open("GET", "/metrics").read().decode()
        found = re.findall(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
        return {
            _series(name, labels): float(value)
            for name, labels, value in found
            if float(value) and not name.endswith("_created")
        }

    def _open(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        reply = connection.getresponse()
        if reply.status != http.HTTPStatus.OK:
            msg = f"{method} {path} was answered {reply.status}: {reply.read(500).decode()}"
            raise DemoError(msg)
        return reply


def _server_sent_events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in reply:
        content = line.removeprefix(b"data: ").strip()
        if content and content != b"[DONE]":
            chunk = json.loads(content)
            if "error" in chunk:
                msg = f"the server answered with an error: {chunk['error'].get('message')}"
                raise DemoError(msg)
            yield chunk


def _text_of(chunk: Mapping[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _series(name: str, labels: str) -> str:
    kept = [
        label for label in labels.split(",") if not label.startswith(("engine=", "model_name="))
    ]
    return f"{name}{{{','.join(kept)}}}" if labels and any(kept) else name

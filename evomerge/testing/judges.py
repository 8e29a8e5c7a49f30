"""A judge on this machine, for examples and tests: a server that speaks as OpenAI's does."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from evomerge.archive.archive import Archive
from evomerge.campaign.judging import JudgingPool
from evomerge.campaign.resume import begin
from evomerge.testing.campaigns import example_campaign, example_folder
from evomerge.testing.prompts import example_prompts
from evomerge.workers.pool import InlinePool
from evomerge.workers.protocol import Job

# What is asked, as JSON -> the text of the reply; or status, headers and body.
Replies = Callable[[Mapping[str, Any]], str | tuple[int, Mapping[str, str], str]]


class StandInJudge:
    """A server at an address of its own, until it is closed.

    Attributes:
        address: of the judge.
        asked: every question that came, as JSON.
        keys: what came with them as `Authorization`; None where nothing did.

    >>> with StandInJudge(lambda asked: "7") as judge:
    ...     judge.address.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, replies: Replies, port: int = 0):
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.asked.append(body)
                judge.keys.append(self.headers["Authorization"])
                said = replies(body) if self.path == "/v1/chat/completions" else (404, {}, "")
                if isinstance(said, str):
                    message = {"role": "assistant", "content": said}
                    said = 200, {}, json.dumps({"choices": [{"index": 0, "message": message}]})
                status, headers, text = said
                data = text.encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> "StandInJudge":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def example_judging(grade: int) -> Iterator[tuple[JudgingPool, Job]]:
    """Give a pool whose answers a judge grades, and a job for it.

    Args:
        grade: of every answer, from 0 to 10.

    >>> with example_judging(grade=3) as (pool, job):
    ...     job.side
    'search'
    """
    with StandInJudge(lambda asked: f'{{"score": {grade}}}') as judge:
        entry = {
            "name": "helpful",
            "judge": judge.address,
            "model": "judge",
            "prompts": str(example_prompts()),
            "rubric": "Is it helpful?",
            "max_tokens": 3,
        }
        campaign = example_campaign(hashed=True, fitness=[entry])
        folder = Path(tempfile.mkdtemp(dir=example_folder()))
        with contextlib.closing(Archive(folder / "archive.db", write=True)) as archive:
            begin(archive, campaign, folder)
            pool = JudgingPool(InlinePool(campaign.worker), campaign, archive)
            try:
                yield pool, Job(1, campaign.space.first, "search")
            finally:
                pool.close()

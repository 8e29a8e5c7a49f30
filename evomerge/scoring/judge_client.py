"""Asks a judge: any address that speaks as OpenAI's chat completions do.

A judge that is down, slow or busy is asked again, later each time; what it says of the question
itself, and a key that it refuses, are not tried again.
"""

import email.utils
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from evomerge.errors import EvomergeError, one_line
from evomerge.scoring.kinds.judge import JudgeSection, Messages
from evomerge.text import duration

log = logging.getLogger("evomerge")

_FIRST, _LONGEST = 1.0, 60.0  # seconds until it is asked again; each time twice as many
_BUSY = (408, 409, 425, 429)  # and all from 500 on: it may answer later
_OF_THE_QUESTION = (400, 413, 422)  # too long, or against the rules of who runs the judge
_REFUSALS = 20  # in a row, after which it is not the questions
_SHOWN = 200  # characters of what it says


class JudgeFailed(EvomergeError):
    """The judge gives no verdicts; no candidate's fault.

    >>> issubclass(JudgeFailed, EvomergeError)
    True
    """


class QuestionRefused(EvomergeError):
    """The judge does not take one question, and would not later.

    >>> issubclass(QuestionRefused, EvomergeError)
    True
    """


class JudgeClient:
    """Asks one judge, from any number of threads.

    >>> section = JudgeSection(
    ...     name="x", judge="http://localhost:9", model="m", prompts="p", rubric="?", patience=0.0
    ... )
    >>> JudgeClient(section).ask([{"role": "user", "content": "..."}])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    evomerge.scoring.judge_client.JudgeFailed: the judge at http://localhost:9 gives no verdict: ...
    """

    def __init__(self, section: JudgeSection, clock: Callable[[], float] = time.monotonic):
        """
        Args:
            section: of the campaign.
            clock: in seconds.
        """
        self._section, self._clock = section, clock
        self._url = section.judge.rstrip("/") + "/chat/completions"
        self._key = os.environ.get(section.key_env, "")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._silent_since: float | None = None
        self._refusals = 0
        self._local = threading.local()

    def body(self, messages: Messages) -> dict[str, Any]:
        """Return what is sent: all that a verdict depends on, the address left out."""
        return {
            "model": self._section.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": self._section.verdict_tokens,
        }

    def close(self) -> None:
        """Let whoever waits to ask again give up."""
        self._closed.set()

    def ask(self, messages: Messages) -> str:
        """Return the judge's reply.

        Raises:
            QuestionRefused: it does not take this question.
            JudgeFailed: it has given no verdict for longer than the patience, or never will.
        """
        pause = _FIRST
        while True:
            said, wait = self._try(messages)
            if said is not None:
                with self._lock:
                    self._silent_since, self._refusals = None, 0
                return said
            pause = min(_LONGEST, max(pause, wait))
            if self._closed.wait(pause):
                raise JudgeFailed("the campaign has stopped asking")
            pause *= 2

    def _try(self, messages: Messages) -> tuple[str | None, float]:
        """Ask once; return the reply, or None and the seconds that it asks to be left alone."""
        import requests

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            response = self._session().post(
                self._url,
                json=self.body(messages),
                headers=headers,
                timeout=self._section.timeout,
                allow_redirects=False,  # a key goes nowhere else
            )
        except requests.RequestException as error:
            return None, self._after_silence(_reason(error))
        status = response.status_code
        if status == 200:
            reply = _content(response)
            if reply is not None:
                return reply, 0.0
            return None, self._after_silence(f"no chat completion: {self._shown(response)}")
        said = f"{status} {response.reason}: {self._shown(response)}"
        if status in _BUSY or status >= 500:
            asked = _retry_after(response.headers.get("Retry-After", ""))
            return None, max(asked, self._after_silence(said))
        if status in _OF_THE_QUESTION:
            with self._lock:
                self._refusals += 1
                is_all = self._refusals >= _REFUSALS
            if not is_all:
                raise QuestionRefused(said)
        mend = f"mend fitness '{self._section.name}', or the key in ${self._section.key_env}"
        raise JudgeFailed(f"the judge at {self._section.judge} says {said}; {mend}")

    def _session(self) -> Any:
        import requests

        if not hasattr(self._local, "session"):  # which is no thing for several threads
            self._local.session = requests.Session()
        return self._local.session

    def _after_silence(self, reason: str) -> float:
        """Note that it gave no verdict; return 0, or raise where that has lasted too long."""
        now, patience = self._clock(), self._section.patience
        with self._lock:
            is_first = self._silent_since is None
            if self._silent_since is None:
                self._silent_since = now
            silent = now - self._silent_since
        if silent >= patience:
            wrong = f"the judge at {self._section.judge} gives no verdict"
            wrong += f" for {duration(silent)}" if silent >= 1.0 else ""
            mend = "see to it and run the campaign again, which goes on from here"
            raise JudgeFailed(f"{wrong}: {reason}; {mend}")
        if is_first:
            name = self._section.name
            log.warning("%s: the judge gives no verdict, and is asked again: %s", name, reason)
        return 0.0

    def _shown(self, response: Any) -> str:
        """Return the begin of what it said, without the key, which some repeat."""
        text = " ".join(response.text.split())[:_SHOWN]
        return text.replace(self._key, "***") if self._key else text


def _reason(error: Exception) -> str:
    """Return why nothing came back, without the objects that the library names."""
    import requests

    if isinstance(error, requests.Timeout):
        return "it takes longer than `timeout`"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return one_line(error)


def _content(response: Any) -> str | None:
    """Return the text of a chat completion, None of anything else."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else "" if content is None else None


def _retry_after(text: str) -> float:
    """Return the seconds of an HTTP Retry-After, which is a number or a date; 0 of neither.

    >>> _retry_after("1.5"), _retry_after("soon")
    (1.5, 0.0)
    """
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0

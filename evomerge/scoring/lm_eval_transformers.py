"""A live transformers model that answers lm-eval's requests, as lm-eval's own `HFLM` does.

A search asks the same of every candidate. So what does not depend on the weights is found once:
encodings, and which prompts make a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

from evomerge.scoring.answer import Answer
from evomerge.scoring.generation import AllStopped, Batch, StopString

# Lists of requests whose batches are kept. Candidates of a generation are scored on the same items;
# others, such as all search items or the held-out ones, come in between.
_KEPT = 8


class TransformersLM:
    """Answers requests of lm-eval's three kinds; what it generates are `Answer`s.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> engine = TransformersLM(*example_live(), batch_size=2)
    >>> engine.batch_size, engine.generate_until([])
    (2, [])
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int):
        """
        Args:
            model: a transformers model, whose weights may change.
            tokenizer: its own.
            batch_size: how many prompts go at once.
        """
        from lm_eval.models.huggingface import HFLM

        self._lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="seq2seq" if model.config.is_encoder_decoder else "causal",
            batch_size=batch_size,
            device=str(model.device),
        )
        self._lm.tok_encode = remembering(self._lm.tok_encode)
        self._model, self._tokenizer = model, self._lm.tokenizer
        self._is_causal = self._lm.backend == "causal"
        self._end = self._lm.tok_decode(self._lm.eot_token_id, skip_special_tokens=False)
        self._stops: dict[str, StopString] = {}
        # the requests are kept too, so that no others can have their ids
        self._batches: dict[tuple[int, ...], tuple[Sequence[Any], list[Batch]]] = {}
        self.batch_size = batch_size
        self.tokenizer_name = self._lm.tokenizer_name
        self.apply_chat_template = self._lm.apply_chat_template
        self.loglikelihood = self._lm.loglikelihood
        self.loglikelihood_rolling = self._lm.loglikelihood_rolling

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each of lm-eval's requests, cut at its stop strings."""
        from lm_eval.models.utils import postprocess_generated_text
        from transformers import StoppingCriteriaList

        answers = [""] * len(requests)
        for batch in self._batches_of(requests):
            rows = self._model.generate(
                input_ids=batch.tokens,
                attention_mask=batch.mask,
                stopping_criteria=StoppingCriteriaList(
                    AllStopped(stop, batch.width) for stop in batch.stops
                ),
                **batch.arguments,
            )
            # an encoder-decoder's rows are without the prompts
            start = batch.width if self._is_causal else 0
            texts = [stop.text for stop in batch.stops]
            for place, row in zip(batch.places, rows[:, start:].tolist(), strict=True):
                said = Answer(self._lm.tok_decode(row), row)
                answers[place] = postprocess_generated_text(said, texts, None)
        return answers

    def length(self, said: Answer) -> int:
        """Return how many tokens an answer has."""
        ends = self._model.generation_config.eos_token_id
        known = set(ends if isinstance(ends, list) else [ends]) | {self._lm.eot_token_id}
        # an encoder-decoder's first token is given, not generated
        return said.length(known, self._lm.tok_decode, given=0 if self._is_causal else 1)

    def encoded(self, prompt: str, answer: int = 0) -> list[int]:
        """Return a prompt's last tokens, as many as leave room for an answer of some tokens.

        Args:
            prompt: as it is asked; of one without tokens, what lm-eval puts before a text.
            answer: its longest.

        Raises:
            ValueError: there is no room for a prompt.
        """
        room = self._lm.max_length - answer
        if room <= 0:
            wrong = f"an answer of {answer} tokens leaves no room for a prompt"
            raise ValueError(f"{wrong}: the model takes {self._lm.max_length}")
        return self._lm.tok_encode(prompt, left_truncate_len=room) or [self._lm.prefix_token_id]

    def spoken(self, said: Answer) -> list[int]:
        """Return the tokens that were generated for an answer, with the one that ended it."""
        return list(said.tokens[: self.length(said) + 1])

    def _batches_of(self, requests: Sequence[Any]) -> list[Batch]:
        """Return the batches that HFLM would make of requests."""
        key = tuple(map(id, requests))
        if key not in self._batches:
            if len(self._batches) == _KEPT:
                self._batches.pop(next(iter(self._batches)))  # the oldest
            self._batches[key] = (list(requests), self._make_batches(requests))
        return self._batches[key][1]

    def _make_batches(self, requests: Sequence[Any]) -> list[Batch]:
        from lm_eval.models.utils import Collator

        ordered = Collator(
            [(*request.args, place) for place, request in enumerate(requests)],
            sort_fn=lambda one: (-len(self._lm.tok_encode(one[0])), one[0]),
            group_by="gen_kwargs",
            group_fn=lambda one: one[1],
        )
        return [self._make_batch(chunk) for chunk in ordered.get_batched(n=self.batch_size)]

    def _make_batch(self, chunk: Sequence[tuple[str, dict[str, Any], int]]) -> Batch:
        """Encode prompts that have the same generation arguments.

        Args:
            chunk: prompt, arguments and place of each.
        """
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        lm, (prompts, every, places) = self._lm, zip(*chunk, strict=True)
        arguments: dict[str, Any] = dict(normalize_gen_kwargs(every[0], lm.max_gen_toks))
        texts = handle_stop_sequences(arguments.pop("until"), eos=self._end)
        most = arguments.pop("max_gen_toks")
        room = lm.max_length - (most if self._is_causal else 0)
        if room <= 0:
            wrong = f"an answer of {most} tokens leaves no room for a prompt"
            raise ValueError(f"{wrong}: the model takes {lm.max_length}")
        tokens, mask = lm.tok_batch_encode(
            list(prompts), left_truncate_len=room, truncation=lm.truncation
        )
        arguments.setdefault("temperature", 0.0)
        if arguments["do_sample"] is False:
            del arguments["temperature"]  # transformers warns of one that it does not use
        arguments.setdefault("max_length", tokens.shape[1] + most)
        arguments |= {"pad_token_id": self._tokenizer.pad_token_id, "use_cache": True}
        stops = [self._stop(text) for text in texts]
        return Batch(places, tokens.to(lm.device), mask.to(lm.device), stops, arguments)

    def _stop(self, text: str) -> StopString:
        if text not in self._stops:
            self._stops[text] = StopString(text, self._tokenizer)
        return self._stops[text]


def remembering(encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """Return an encoding that encodes every text once.

    >>> remembering(lambda text: [len(text)])("w1")
    [2]
    """
    known: dict[tuple, list[int]] = {}

    def encoded(text: str, *args: Any, **options: Any) -> list[int]:
        key = (text, args, tuple(sorted(options.items())))
        if key not in known:
            known[key] = encode(text, *args, **options)
        return list(known[key])

    return encoded

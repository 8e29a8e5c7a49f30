"""A live model in vLLM that answers lm-eval's requests with the very tokens that `HFLM` asks for.

lm-eval has a class of its own for vLLM, which makes an engine for one model and encodes prompts in
its own way. Here encodings, truncation and chat templates are those of `HFLM`, so that an item is
the same question whatever answers it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from evomerge.scoring.answer import Answer
from evomerge.scoring.lm_eval_transformers import remembering

# A question's tokens and its options -> what vLLM says; see `VllmLM`.
Ask = Callable[[Sequence[Sequence[int]], Sequence[dict[str, Any]]], Sequence[Any]]

_KNOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")

_LIKELIHOODS = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}


class VllmLM:
    """Answers requests of lm-eval's three kinds; what it generates are `Answer`s.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> lm = VllmLM(lambda prompts, options: [], *example_live(), longest=64)
    >>> lm.generate_until([])
    []
    """

    def __init__(self, ask: Ask, model: Any, tokenizer: Any, longest: int):
        """
        Args:
            ask: generates from tokens; arguments of `vllm.SamplingParams` come with each.
            model: of transformers, of which only the class and the config matter.
            tokenizer: its own.
            longest: how many tokens a prompt and its answer may have together.
        """
        from lm_eval.models.huggingface import HFLM

        self._ask, self._longest = ask, longest
        self._lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=longest,
            device="cpu",
        )
        self._lm.tok_encode = remembering(self._lm.tok_encode)
        self._lm._loglikelihood_tokens = self._likelihoods
        self._ends = self._end_tokens(model)
        self._end = self._lm.tok_decode(self._lm.eot_token_id, skip_special_tokens=False)
        self._prompts: dict[tuple[str, int], list[int]] = {}
        self.tokenizer_name = self._lm.tokenizer_name
        self.apply_chat_template = self._lm.apply_chat_template
        self.loglikelihood = self._lm.loglikelihood
        self.loglikelihood_rolling = self._lm.loglikelihood_rolling

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each of lm-eval's requests, cut at its stop strings."""
        from lm_eval.models.utils import (
            handle_stop_sequences,
            normalize_gen_kwargs,
            postprocess_generated_text,
        )

        prompts, options, stops = [], [], []
        for request in requests:
            prompt, given = request.args
            arguments: dict[str, Any] = dict(normalize_gen_kwargs(given, self._lm.max_gen_toks))
            texts = handle_stop_sequences(arguments.pop("until"), eos=self._end)
            most = arguments.pop("max_gen_toks")
            prompts.append(self._prompt(prompt, self._longest - most))
            options.append(_sampling(arguments) | {"max_tokens": most, "stop": texts})
            stops.append(texts)
        answers = []
        for texts, tokens in zip(stops, self._ask(prompts, options), strict=True):
            said = Answer(self._lm.tok_decode(list(tokens)), tokens)
            answers.append(postprocess_generated_text(said, texts, None))
        return answers

    def length(self, said: Answer) -> int:
        """Return how many tokens an answer has."""
        return said.length(self._ends, self._lm.tok_decode)

    def _end_tokens(self, model: Any) -> set[int]:
        ends = model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends]) | {self._lm.eot_token_id}

    def _prompt(self, text: str, room: int) -> list[int]:
        """Return a prompt's tokens, as a batch of this prompt alone has them."""
        if room <= 0:
            wrong = "an answer as long as asked for leaves no room for a prompt"
            raise ValueError(f"{wrong}: the model takes {self._longest} tokens")
        if (text, room) not in self._prompts:
            tokens, _ = self._lm.tok_batch_encode(
                [text], left_truncate_len=room, truncation=self._lm.truncation
            )
            self._prompts[text, room] = tokens[0].tolist()
        return self._prompts[text, room]

    def _likelihoods(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood after its context, and whether it is greedy."""
        room = self._longest - 1  # vLLM generates a token at least
        prompts = [(context + said)[-room:] for _, context, said in requests]
        found = self._ask(prompts, [_LIKELIHOODS] * len(prompts))
        answers = []
        for (_, _, said), prompt, likelihoods in zip(requests, prompts, found, strict=True):
            total, is_greedy = 0.0, True
            for token, by_token in list(zip(prompt, likelihoods, strict=True))[-len(said) :]:
                total += by_token[token].logprob
                is_greedy = is_greedy and by_token[token].rank == 1
            answers.append((total, is_greedy))
        return answers


def _sampling(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return lm-eval's generation arguments as vLLM calls them.

    Raises:
        ValueError: vLLM has no such argument.
    """
    is_sampled = arguments.pop("do_sample", False)
    temperature = arguments.pop("temperature", None)
    strange = sorted(arguments.keys() - set(_KNOWN))
    if strange:
        raise ValueError(f"vLLM has no generation argument '{strange[0]}'; leave it out")
    if is_sampled:
        return arguments | {"temperature": 1.0 if temperature is None else temperature}
    return arguments | {"temperature": 0.0}

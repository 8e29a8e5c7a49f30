"""Mixtures of experts as mergekit-moe's files describe them, as typed sections.

The keys are mergekit-moe's (github.com/arcee-ai/mergekit, docs/moe.md), so that its files are read
as they are; what is not done here is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from evomerge.dtypes import Dtype
from evomerge.errors import Fault
from evomerge.sections import Section, Text, Whole, option


class ExpertSection(Section):
    """A model whose MLPs are one expert of each layer.

    >>> ExpertSection(source_model="models/ja", positive_prompts=["3 + 4"]).negative_prompts
    []
    """

    source_model: Text = option("a directory, a hub id, either with +adapter", example="MODEL")
    positive_prompts: list[Text] = option(
        "texts for which this expert is to be chosen", factory=list
    )
    negative_prompts: list[Text] = option("texts for which it is not to be chosen", factory=list)


class MoeSection(Section):
    """A mixture of experts made of dense models of one architecture.

    >>> MoeSection(base_model="a", gate_mode="random",
    ...            experts=[{"source_model": "a"}, {"source_model": "b"}]).experts_per_token
    2
    """

    base_model: Text = option("gives all but the MLPs", example="MODEL")
    experts: list[ExpertSection] = option(
        "whose MLPs the routers choose among", least=2, example=[{"source_model": "MODEL"}]
    )
    gate_mode: Literal["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random"] = option(
        "what routers are made of: states before the MLPs at a prompt's last token (hidden, or"
        " hidden_last), their mean over its tokens (hidden_avg), the mean of its embeddings"
        " (cheap_embed), or chance (random)",
        "hidden",
    )
    dtype: Dtype | None = option("of the weights; null: the base's", None)
    experts_per_token: Whole = option("that answer for a token", 2, unit="experts", ge=1)
    seed: Whole = option("of routers by chance", 0, ge=0, lt=2**63)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        experts = [expert for expert in fields.get("experts", ()) if expert is not None]
        most = fields.get("experts_per_token")
        if most is not None and experts and most > len(experts):
            wrong = f"{most} are more than the {len(experts)} experts that there are"
            yield Fault("experts_per_token", wrong, "write fewer")
        if fields.get("gate_mode", "random") == "random":
            return
        for index, expert in enumerate(experts):
            if not expert.positive_prompts:
                mend = "write texts that it should answer, or gate_mode: random"
                yield Fault(f"experts.{index}.positive_prompts", "is missing", mend)
        asked = {(tuple(e.positive_prompts), tuple(e.negative_prompts)) for e in experts}
        if len(experts) > 1 and len(asked) == 1 and experts[0].positive_prompts:
            wrong = "all experts have the same prompts, so that no router tells them apart"
            yield Fault("experts", wrong, "write each expert's own")


def is_moe(data: Any) -> bool:
    """Tell whether a YAML file's content describes a mixture of experts.

    >>> is_moe({"base_model": "a", "experts": []}), is_moe({"merge_method": "linear"})
    (True, False)
    """
    return isinstance(data, Mapping) and "experts" in data

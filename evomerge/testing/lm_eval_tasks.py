"""A small task of lm-eval, for examples and tests."""

import tempfile
from pathlib import Path
from typing import Any

from evomerge.scoring.fitness import CostSection, Fitness, TaskSection
from evomerge.scoring.lm_eval_loading import load_tasks
from evomerge.scoring.lm_eval_model import LoadedModel
from evomerge.scoring.open_fitness import open_fitness
from evomerge.testing.campaigns import example_folder

_DATA = """
import datasets


def load(**options):
    rows = [
        {"q": f"w{i % 20} w{i}", "choices": [f"w{(i + k) % 20}" for k in range(2)], "gold": i % 2}
        for i in range(24)
    ]
    return {"test": datasets.Dataset.from_list(rows)}
"""

_TASK = """
task: example
custom_dataset: !function data.load
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

_GENERATION = """
task: example
custom_dataset: !function data.load
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def example_section(*, generates: bool = False, **options: Any) -> TaskSection:
    """Write a task with 24 documents of one split; return an entry that names it.

    Args:
        generates: it is answered by up to four words, not by a choice.
        options: of the entry.

    >>> example_section(fewshot=2).fewshot
    2
    """
    folder = Path(tempfile.mkdtemp(dir=example_folder()))
    (folder / "data.py").write_text(_DATA)
    (folder / "task.yaml").write_text(_GENERATION if generates else _TASK)
    metric = "exact_match" if generates else "acc"
    return TaskSection(name="example", task=str(folder / "task.yaml"), metric=metric, **options)


def example_task(**options: Any) -> Any:
    """Return the task of `example_section`, loaded.

    >>> example_task(fewshot=2).config.num_fewshot
    2
    """
    (task,) = load_tasks(example_section(**options))
    return task


def example_live() -> LoadedModel:
    """Return a tiny live model and its tokenizer.

    >>> example_live().model.config.model_type
    'llama'
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = example_folder() / "a"
    model = AutoModelForCausalLM.from_pretrained(folder)
    return LoadedModel(model, AutoTokenizer.from_pretrained(folder))


def example_lengths() -> dict[str, Fitness]:
    """Return the fitnesses of a task that generates, and of the length of its answers.

    >>> example_lengths()["length"].follows
    ('maths',)
    """
    fitness = {
        "maths": open_fitness(example_section(generates=True)),
        "length": open_fitness(CostSection(name="length", cost="tokens")),
    }
    for one in fitness.values():
        one.follow(fitness)
    return fitness

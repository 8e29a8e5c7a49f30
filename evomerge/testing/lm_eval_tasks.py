"""A small task of lm-eval, for examples and tests."""

import tempfile
from pathlib import Path
from typing import Any

from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_loading import load_tasks
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


def example_section(**options: Any) -> TaskSection:
    """Write a task with 24 documents of one split; return an entry that names it.

    >>> example_section(fewshot=2).fewshot
    2
    """
    folder = Path(tempfile.mkdtemp(dir=example_folder()))
    (folder / "data.py").write_text(_DATA)
    (folder / "task.yaml").write_text(_TASK)
    return TaskSection(name="example", task=str(folder / "task.yaml"), metric="acc", **options)


def example_task(**options: Any) -> Any:
    """Return the task of `example_section`, loaded.

    >>> example_task(fewshot=2).config.num_fewshot
    2
    """
    (task,) = load_tasks(example_section(**options))
    return task


def example_live() -> tuple[Any, Any]:
    """Return a tiny live model and its tokenizer.

    >>> example_live()[0].config.model_type
    'llama'
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = example_folder() / "a"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

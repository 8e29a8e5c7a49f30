"""What adapters lean on in libraries without being promised it; a failure says what broke.

One test for each adapter: `search/controllers/nsga.py` and `optuna_samplers.py` (optuna),
`scoring/lm_eval_task.py` and `lm_eval_transformers.py` (lm-eval), `search/controllers/cmaes.py`
(pycma).
For transformers see test_contracts_transformers.py.
"""

import inspect
from importlib import metadata

import numpy as np


def broke(package: str, what: str) -> str:
    return f"{package} {metadata.version(package)}: {what}"


def test_optuna_keeps_the_hooks_of_its_genetic_samplers():
    from optuna.samplers import NSGAIIISampler, NSGAIISampler
    from optuna.samplers._ga import BaseGASampler

    for sampler in (NSGAIISampler, NSGAIIISampler):
        assert issubclass(sampler, BaseGASampler), broke("optuna", f"{sampler} is no BaseGASampler")
    hooks = {
        "get_trial_generation": ["self", "study", "trial"],
        "get_population": ["self", "study", "generation"],
        "get_parent_population": ["self", "study", "generation"],
        "select_parent": ["self", "study", "generation"],
        "before_trial": ["self", "study", "trial"],
        "after_trial": ["self", "study", "trial", "state", "values"],
    }
    for name, expected in hooks.items():
        hook = getattr(NSGAIISampler, name, None)
        assert hook, broke("optuna", f"samplers have no {name}, which _Generations overrides")
        found = list(inspect.signature(hook).parameters)
        assert found == expected, broke("optuna", f"{name} takes {found}")


def test_optuna_lets_a_trial_s_parameter_be_corrected():
    import optuna
    from optuna.distributions import FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    gene = FloatDistribution(0.0, 1.0)
    trial = study.ask({"gene": gene})
    study._storage.set_trial_param(trial._trial_id, "gene", 0.25, gene)
    study.tell(trial, 1.0)
    value = study.trials[0].params["gene"]
    assert value == 0.25, broke("optuna", "set_trial_param no longer corrects a parameter")


def test_lm_eval_s_tasks_have_what_is_read_of_them(here):
    from evomerge.scoring.fitness import TaskSection
    from evomerge.scoring.open_fitness import open_fitness

    fitness = open_fitness(TaskSection(name="x", task="generation.yaml", metric="exact_match"))
    task = fitness._task
    task.build_all_requests(samples={0})
    for name in ("_config", "_filters", "instances", "eval_docs", "OUTPUT_TYPE"):
        assert hasattr(task, name), broke("lm_eval", f"tasks have no {name}")
    options = inspect.signature(task.build_all_requests).parameters
    for name in ("samples", "system_instruction", "apply_chat_template", "chat_template"):
        assert name in options, broke("lm_eval", f"build_all_requests takes no {name}")
    from lm_eval.models.huggingface import HFLM

    names = ("tok_encode", "tok_batch_encode", "tok_decode", "loglikelihood")
    for name in names:
        assert hasattr(HFLM, name), broke(
            "lm_eval", f"HFLM has no {name}, which TransformersLM uses"
        )


def test_lm_eval_s_answers_are_what_was_decoded_up_to_the_stop_string(world):
    from lm_eval.api.instance import Instance

    from evomerge.scoring.answer import Answer
    from evomerge.scoring.lm_eval_model import answer
    from evomerge.testing.lm_eval_tasks import example_live, example_section

    lm = example_live().language_model(example_section())
    prompt = ("w1 w2", {"until": ["</s>"], "max_gen_toks": 4})
    asked = Instance("generate_until", {}, prompt, 0, metadata=("example", 0, 1))
    answer(lm, [asked])
    (said,) = asked.said
    assert isinstance(said, Answer), broke(
        "lm_eval", "answers are cut by something else than str.split"
    )
    assert asked.resps == [str(said)] and len(said.tokens) == 4


def test_pycma_draws_with_our_generator_alone():
    import cma

    rng, calls = np.random.default_rng(1), []

    def randn(*shape):
        calls.append(shape)
        return rng.standard_normal(shape)

    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    options = {"randn": randn, "seed": float("nan"), "verbose": -9, "bounds": [0.0, 1.0]}
    search = cma.CMAEvolutionStrategy(np.full(3, 0.5), 0.2, options)
    points = search.ask()
    search.tell(points, list(range(len(points))))
    assert calls, broke("cma", "the option randn is not called")
    unmoved = np.array_equal(before, np.random.get_state()[1])
    assert unmoved, broke("cma", "numpy's global generator is moved in spite of seed nan")

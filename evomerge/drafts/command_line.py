"""What mergekit-evolve's command line says beside its configuration, and what becomes of it."""

from dataclasses import dataclass

# option -> what there is here in its place
INSTEAD = {
    "strategy": "workers are asked as soon as they are free",
    "in-memory": "candidates are always merged in memory",
    "no-in-memory": "candidates are always merged in memory",
    "storage-path": "a run's directory is runs/NAME, or what `evomerge run --run DIR` says",
    "merge-cuda": "a worker merges on the device that it scores on",
    "no-merge-cuda": "a worker merges on the device that it scores on; for a processor write"
    " workers.device: cpu",
    "reshard": "sources are read as they are, in any number of files",
    "no-reshard": "sources are read as they are, in any number of files",
    "save-final-model": "write it by `evomerge export`",
    "no-save-final-model": "nothing is written unless `evomerge export` is asked",
    "allow-crimes": "sources have to fit together",
    "load-in-8bit": "write workers.quantize: int8",
    "load-in-4bit": "write workers.quantize: int4",
    "wandb": "write track: [wandb]",
    "wandb-project": "write track: [{kind: wandb, project: NAME}]",
    "wandb-entity": "write track: [{kind: wandb, entity: NAME}]",
}


@dataclass(frozen=True)
class CommandLine:
    """mergekit-evolve's options, with its defaults.

    Attributes:
        max_fevals: candidates.
        sigma0: the first step, of genes as they are.
        population: of CMA-ES; None for its default.
        seed: of masks that are drawn.
        batch_size: prompts at once.
        task_search_path: folders with tasks' files.
        vllm: whether vLLM answers.
        num_gpus: None for all there are.
        seconds: after which the search ends.
        trust_remote_code: whether code of the models is run.
        allow_benchmarks: whether a public benchmark may be searched on.
        others: names of further options that were given, see `INSTEAD`.

    >>> CommandLine(max_fevals=200).sigma0
    0.16666666666666666
    """

    max_fevals: int = 100
    sigma0: float = 1 / 6
    population: int | None = None
    seed: int = 0
    batch_size: int | None = None
    task_search_path: tuple[str, ...] = ()
    vllm: bool = False
    num_gpus: int | None = None
    seconds: float | None = None
    trust_remote_code: bool = False
    allow_benchmarks: bool = False
    others: tuple[str, ...] = ()

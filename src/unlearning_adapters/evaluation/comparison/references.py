"""Two costly references beside the methods: ESD, which is trained, and a gold model, which never saw the concept."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import Arm, check_unedited
from unlearning_adapters.evaluation.arms.conditions import conditions_of
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.pipelines.base_model import base_model_of

from .esd import EsdSettings, esd_prompts, train_esd
from .site_lora import SiteLora, lora_from

ESD, GOLD = "esd", "gold"
LORA = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
RECORD = "unlearning_esd"
# What a gold pipeline must share with the pipeline, as `conditions_of` calls it.
SHARED = ("pipeline", "denoisers", "dtype", "device", "scheduler", "scheduler_config")
PROBED = 64  # numbers of each weight that tell two gold models apart


def esd_arm(
    pipe: Any, concept: Concept, suite: Suite, settings: EsdSettings, folder: str | Path, progress: bool = True
) -> Arm:
    """Return the arm of a LoRA that ESD trained on the base, from a folder if it is there and was trained alike.

    Args:
        pipe: A diffusers pipeline without adapters of this package.
        concept: What is to be forgotten.
        suite: Its arguments of the pipeline's call hold for the training as well.
        settings: How to train.
        folder: Where the LoRA is kept, as a file that `pipe.load_lora_weights(folder)` reads.
        progress: Whether to show a progress bar.

    Raises:
        EvaluationError: If the pipeline is edited, or the folder holds a LoRA of other pairs or settings.
    """
    check_unedited(pipe)
    file = Path(folder) / LORA
    trained = json.loads(
        json.dumps(
            {
                "concept": concept.name,
                "pairs_hash": concept.pairs_hash,
                "prompts": [prompt for prompt, _ in esd_prompts(concept)],
                "settings": settings.to_dict(),
                "generation": dict(suite.generation),
            },
            default=str,
        )
    )
    if not file.is_file():
        start = time.perf_counter()
        result = train_esd(pipe, concept, settings, call_kwargs=suite.generation, progress=progress)
        record = {**trained, "seconds": round(time.perf_counter() - start, 3)}
        write_whole(file, save(result.tensors(), {"format": "pt", RECORD: json.dumps(record)}))
    lora, record = _read(pipe, file)
    for name, value in trained.items():
        if record.get(name) != value:
            raise EvaluationError(
                f"The folder {file.parent.name!r} holds a LoRA of ESD with another {name.replace('_', ' ')}: "
                f"{record.get(name)!r}, now {value!r}. Choose another folder, or remove that one."
            )

    @contextlib.contextmanager
    def enter(acting: Any) -> Iterator[None]:
        check_unedited(acting)
        with lora.acting(acting):
            yield

    details = {
        "method": ESD,
        "applied": "LoRA on the sites",
        "sites": len(lora.factors),
        "rank": lora.rank,
        "settings": record["settings"],
        "prompts": record["prompts"],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "pairs_hash": concept.pairs_hash,
        "build_seconds": record["seconds"],
    }
    return Arm(enter, "reference", "ESD (trained)", details=details)


def gold_arm(pipe: Any, gold: Any, suite: Suite) -> Arm:
    """Return the arm of a pipeline that was trained without the concept: what perfect forgetting looks like.

    Args:
        pipe: The pipeline that is measured.
        gold: Another pipeline of its class, with the same kind of scheduler; both stay in memory.
        suite: The suite.

    Raises:
        EvaluationError: If the two cannot be compared, or the gold pipeline is edited.
    """
    if gold is pipe:
        raise EvaluationError(
            "The gold pipeline is the pipeline itself. Give one that was trained without the concept."
        )
    check_unedited(gold)
    conditions, other = conditions_of(pipe, suite), conditions_of(gold, suite)
    for name in SHARED:
        if conditions[name] != other[name]:
            raise EvaluationError(
                f"The gold pipeline has another {name.replace('_', ' ')}: {other[name]!r}, and the pipeline has "
                f"{conditions[name]!r}. Take one that differs in its training data alone."
            )
    details = {"model": base_model_of(gold), "weights": _fingerprint(gold)}
    title = "gold: trained without the concept"
    return Arm(lambda _: contextlib.nullcontext(), "reference", title, details=details, pipe=gold)


def _read(pipe: Any, file: Path) -> tuple[SiteLora, dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as handle:
            record: Mapping[str, Any] = json.loads((handle.metadata() or {})[RECORD])
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise EvaluationError(
            f"{file.parent.name}/{file.name} holds no LoRA that ESD trained here: {error}. Remove the file."
        ) from error
    return lora_from(pipe, tensors, f"{file.parent.name}/{file.name}"), dict(record)


def _fingerprint(pipe: Any) -> str:
    """Return a hash of a few numbers of each weight, which tells two gold models apart."""
    digest = hashlib.sha256()
    for component, network in pipe.components.items():
        weights = network.named_parameters() if isinstance(network, nn.Module) else ()
        for path, weight in weights:
            digest.update(f"{component}.{path} {tuple(weight.shape)}".encode())
            if not weight.is_meta:
                few = weight.detach().flatten()[:: max(1, weight.numel() // PROBED)]
                digest.update(few.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]

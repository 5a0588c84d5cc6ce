"""Run attacks and their controls on an edited pipeline; report what each brings back, and its cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.attacks.kinds.embedding_shift import embedding_shift
from unlearning_adapters.attacks.kinds.prompts import co_occurring, guidance, paraphrase, seeds
from unlearning_adapters.attacks.kinds.relearning import resurrection
from unlearning_adapters.attacks.kinds.soft_prompt import soft_prompt
from unlearning_adapters.attacks.kinds.stacked import stacked
from unlearning_adapters.attacks.kinds.tampering import tampering
from unlearning_adapters.attacks.kinds.video_start import video_start
from unlearning_adapters.errors import DenoiserError, EvaluationError
from unlearning_adapters.evaluation.arms.arm import adapter_arm, check_unedited
from unlearning_adapters.evaluation.arms.generate import check_call
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.metrics import rate_to_dict
from unlearning_adapters.evaluation.reports.numbers import cell
from unlearning_adapters.pipelines.base_model import base_model_of
from unlearning_adapters.pipelines.edits import check_no_lora

from .budget import Budget, find_budget
from .subject import AttackPoint, Cost, Subject
from .target import Examples, Target

RunAttack = Callable[[Subject, Target, Examples, Budget], tuple[AttackPoint, ...]]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        title: What it does, in a few words.
        run: Function from subject, target, examples and budget to the result at each setting.
    """

    title: str
    run: RunAttack


ATTACKS: dict[str, Attack] = {
    "paraphrase": Attack("synonyms and paraphrases", paraphrase),
    "guidance": Attack("guidance scale", guidance),
    "seeds": Attack("seed search", seeds),
    "embedding": Attack("embedding shift (continuous Ring-A-Bell)", embedding_shift),
    "soft-prompt": Attack("soft prompt, learned through the denoiser", soft_prompt),
    "resurrection": Attack("LoRA of rank 4, trained on clips of the concept", resurrection),
    "tampering": Attack("changes of the fused weights", tampering),
    "video": Attack("start from a clip of the concept", video_start),
    "together": Attack("the concept beside something else", co_occurring),
    "stack": Attack("two erased concepts stacked", stacked),
}
NOT_MEASURED = "not measured"
HEADINGS = ("attack", "setting", "edited, before", "edited, attacked", "base, attacked", "reference", "gold", "budget")
ARMS = ("edited", "base", "reference", "gold")


@dataclass(frozen=True)
class AttackPlan:
    """What is run.

    Args:
        names: Attacks, in order.
        budget: What each may spend.
        strict: Whether an attack that does not suit the pipeline raises an error. If not, the report says why it was
            skipped.
        progress: Whether to show a progress bar.
    """

    names: tuple[str, ...]
    budget: Budget
    strict: bool
    progress: bool


def run_attacks(
    pipe: Any,
    adapter: UnlearningAdapter | str | Path,
    target: Target,
    detectors: Sequence[Detector],
    names: Sequence[str] | None = None,
    budget: str | Budget = "small",
    reference: Target | None = None,
    gold: Any = None,
    second: tuple[UnlearningAdapter, Target] | None = None,
    call: Mapping[str, Any] | None = None,
    batch: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Attack a pipeline with an adapter fused into its weights.

    Each attack is run on four subjects: the edited pipeline; the base, which tells what the attack does where nothing
    was forgotten; the edited pipeline with a concept that was never erased as the target (the reference); and, if there
    is one, a gold pipeline that was trained without the concept. The pipeline is left as it was, bit for bit.

    Args:
        pipe: A diffusers pipeline without adapters of this package.
        adapter: The adapter, or where it is.
        target: What the attacks want to see.
        detectors: What looks at each clip.
        names: Attacks, keys of `ATTACKS`; None runs all that suit the pipeline.
        budget: "small", "medium" or a `Budget`.
        reference: A concept that was never erased; None leaves that control out.
        gold: A pipeline that was trained without the concept; None leaves that control out.
        second: Another adapter and its target, for the attack on a stack.
        call: Arguments of the pipeline's call.
        batch: Clips per call.
        progress: Whether to show a progress bar.

    Returns:
        What the report holds, as plain JSON types.

    Raises:
        EvaluationError: If there is no such attack, the pipeline is edited, or an attack that was named does not suit.
        DenoiserError: If a LoRA acts on the pipeline.
    """
    attacks = tuple(ATTACKS) if names is None else tuple(dict.fromkeys(names))
    for name in attacks:
        if name not in ATTACKS:
            raise EvaluationError(f"Unknown attack {name!r}. Known: {', '.join(ATTACKS)}.")
    plan = AttackPlan(attacks, find_budget(budget), names is not None, progress)
    edit = adapter if isinstance(adapter, UnlearningAdapter) else load_adapter(adapter)
    arguments = dict(call or {})
    check_unedited(pipe)
    check_no_lora(pipe, "A report of attacks")
    check_call(pipe, arguments)
    start, base = time.perf_counter(), Subject(pipe, tuple(detectors), arguments, batch, second=second)
    examples = {"edited": examples_of(base, target)}
    results: dict[str, dict[str, Any]] = {"base": _attack_all(base, target, examples["edited"], plan, "base")}
    if reference is not None:
        examples["reference"] = examples_of(base, reference)
    with adapter_arm(edit, fused=True).enter(pipe):
        edited = replace(base, adapter=edit)
        results["edited"] = _attack_all(edited, target, examples["edited"], plan, "edited")
        if reference is not None:
            results["reference"] = _attack_all(edited, reference, examples["reference"], plan, "reference")
    if gold is not None:
        check_unedited(gold)
        results["gold"] = _attack_all(base.on(gold), target, examples["edited"], plan, "gold")
    return {
        "concept": target.concept,
        "reference": None if reference is None else reference.concept,
        "gold": None if gold is None else base_model_of(gold),
        "pipeline": type(pipe).__name__,
        "model": base_model_of(pipe),
        "adapter": dict(adapter_arm(edit, fused=True).details),
        "generation": arguments,
        "budget": asdict(plan.budget),
        "attacks": {name: _entry(name, results) for name in attacks},
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__,
    }


def examples_of(base: Subject, target: Target) -> Examples:
    """Return clips of the concept that the base makes, as latents."""
    latents, starts = (
        torch.stack(base.generate(requests, "latent")) if requests else torch.empty(0)
        for requests in (target.training, target.named)
    )
    return Examples(target.training, latents, starts)


def _attack_all(subject: Subject, target: Target, examples: Examples, plan: AttackPlan, arm: str) -> dict[str, Any]:
    """Run all attacks on one subject; each with the rates of the same prompts without it."""
    kinds = {"named": target.named, "open": target.open_prompts}
    before = {
        kind: point_to_dict(AttackPoint.of("no attack", subject.look(requests, target)))
        for kind, requests in kinds.items()
        if requests
    }
    results: dict[str, Any] = {}
    for name in tqdm(plan.names, desc=arm, unit="attack", disable=not plan.progress):
        attack, cost = ATTACKS[name], Cost()
        try:
            with cost.clock():
                points = attack.run(replace(subject, cost=cost), target, examples, plan.budget)
        except (EvaluationError, DenoiserError) as error:
            if plan.strict:
                raise
            results[name] = {"refused": str(error)}
            continue
        results[name] = {
            "points": [_beside(point, before) for point in points],
            "clips": cost.clips,
            "steps": cost.steps,
            "seconds": round(cost.seconds, 2),
        }
    return results


def _beside(point: AttackPoint, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with the rate of the same prompts without the attack."""
    before_rate = None if point.before is None else point_to_dict(point.before)
    return {**point_to_dict(point), "before": before_rate or before["open" if point.open_prompts else "named"]}


def point_to_dict(point: AttackPoint) -> dict[str, Any]:
    """Return a result at one setting as plain JSON types."""
    values = {"setting": point.setting, **rate_to_dict(point.rate), "valid": rate_to_dict(point.valid)}
    return values if point.number is None else {**values, "number": point.number}


def _entry(name: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"title": ATTACKS[name].title, **{arm: results[arm][name] if arm in results else None for arm in ARMS}}


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return the result of `run_attacks` as Markdown.

    Args:
        data: What `run_attacks` returned.
    """
    lines = [f"# Attacks on {data['concept']}", "", _row(HEADINGS), _row(["---"] * len(HEADINGS))]
    left_out = []
    for entry in data["attacks"].values():
        edited = entry["edited"]
        if "refused" in edited:
            left_out.append(f"- {entry['title']}: {edited['refused']}")
            continue
        for index, point in enumerate(edited["points"]):
            others = [_cell(entry[arm], index) for arm in ("base", "reference", "gold")]
            budget = _budget(edited) if index == 0 else ""
            title = entry["title"] if index == 0 else ""
            lines.append(_row([title, point["setting"], cell(point["before"]), cell(point), *others, budget]))
    lines += ["", "Share of clips that are valid and show the concept [95 % Wilson interval] (counts)."]
    lines.append(f"Reference, never erased: {data['reference'] or NOT_MEASURED}. Gold: {data['gold'] or NOT_MEASURED}.")
    if left_out:
        lines += ["", "Left out:", "", *left_out]
    return "\n".join(lines) + "\n"


def _cell(arm: Mapping[str, Any] | None, index: int) -> str:
    if arm is None or "refused" in arm or index >= len(arm["points"]):
        return NOT_MEASURED
    return cell(arm["points"][index])


def _budget(arm: Mapping[str, Any]) -> str:
    steps = f", {arm['steps']} steps" if arm["steps"] else ""
    return f"{arm['clips']} clips{steps}, {arm['seconds']:.0f} s"


def _row(cells: Any) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"

"""The verdict of a report: reasons that make it void, and cautions to read with its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearning_adapters.evaluation.arms.arm import BASE, DESTROYED, RANDOM
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.metrics import ArmRates
from unlearning_adapters.evaluation.suites.overlap import near_prompts
from unlearning_adapters.evaluation.suites.suite import Suite

# Least share of forget prompts that the base must show: as labels tell, and as scores tell.
GATE_LABELS, GATE_SCORES = 0.9, 0.5
ERRORS = 0.01  # largest share of clips that may fail
CONTROL = 0.2  # erasure of a control up to which it counts as none
HALF = 0.5  # share of the edited arm's erasure that a random direction must stay below
REPEAT = 0.02  # largest mean difference between two runs of the base on one machine
SMALL = 100  # prompts below which intervals are wide
STILL = 0.5  # motion ratio below which a video counts as freezing
ABSENT = "absent"  # what judges say of a thing that is not there: no value in place of it
ONE_VALUE = 0.9  # share of one value among what is shown in place of the concept


@dataclass(frozen=True)
class Verdict:
    """What a report says of itself.

    Args:
        reasons: Why it is void; empty if it is not.
        cautions: What to keep in mind.
    """

    reasons: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "ok" or "void"."""
        return "void" if self.reasons else "ok"


def gate_of(suite: Suite, gate: float | None) -> float:
    """Return the least share of forget prompts that the base must show."""
    return (GATE_LABELS if suite.target else GATE_SCORES) if gate is None else gate


def check_gate(base: ArmRates, share: float | None, gate: float) -> list[str]:
    """Return why the base does not know the concept; empty if it does.

    Args:
        base: Rates of the base.
        shown: Share of all clips of forget prompts that are valid and show the concept.
        gate: The least share.
    """
    if share is None:
        return ["No detector can tell whether the concept is shown, so that erasure cannot be measured."]
    reasons = []
    if share < gate:
        reasons.append(
            f"The base does not know the concept: it shows it for {share:.2f} of the forget prompts, and {gate:.2f} "
            "are needed. What a model never shows cannot be seen to be erased."
        )
    for name, rate in base.context.items():
        if rate.value is not None and rate.value < gate:
            reasons.append(f"The base gets {name} right in {rate.value:.2f} of the clips only; {gate:.2f} are needed.")
    if base.preservation.value is not None and base.preservation.value < gate:
        reasons.append(
            f"The base shows {base.preservation.value:.2f} of the neighbours only; {gate:.2f} are needed to see damage."
        )
    return reasons


def judge_report(
    suite: Suite,
    detectors: Sequence[Detector],
    rates: Mapping[str, ArmRates],
    arms: Mapping[str, Any],
    gate: float,
    repeat: Mapping[str, Any] | None = None,
) -> Verdict:
    """Return the verdict on all arms of a run.

    Args:
        suite: The suite.
        detectors: All detectors.
        rates: Rates by arm.
        arms: What the report says of each arm: "part", "paired", "drift", "missing", "erasure" of each arm.
        gate: Least share of forget prompts that the base must show.
        repeat: How far a few clips of the base are from the same clips made once more at the end.
    """
    reasons = check_gate(rates[BASE], arms[BASE]["shown"]["value"], gate)
    if reasons and list(arms) == [BASE]:
        return Verdict((*reasons, "No other arm was run."), tuple(_cautions(suite, detectors, rates, arms)))
    for name, arm in arms.items():
        if arm["missing"]:
            reasons.append(f"The arm {name!r} lacks {arm['missing']} clips. Run the same command again to make them.")
        share = rates[name].error_rate
        if share.value is not None and share.value > ERRORS:
            reasons.append(
                f"In the arm {name!r}, {share.hits} of {share.count} clips could not be made or read, more than 1 %."
            )
    for name in (name for name, arm in arms.items() if arm["part"] == "edited"):
        same = arms[name]["drift"]["all"]["identical"]
        if same["count"] and same["hits"] == same["count"] and arms[name]["strength"] != 0:
            reasons.append(f"All clips of the arm {name!r} are those of the base: the edit is not applied.")
    repeated = None if repeat is None else repeat["difference"]["value"]
    if repeated is not None and repeated > REPEAT:
        reasons.append(
            f"The base gave other clips at the end than at the start (mean difference {repeated:.3f}): "
            "an arm left a trace, or the pipeline is not deterministic."
        )
    reasons += _check_controls(rates, arms)
    return Verdict(tuple(reasons), tuple(_cautions(suite, detectors, rates, arms)))


def _check_controls(rates: Mapping[str, ArmRates], arms: Mapping[str, Any]) -> list[str]:
    reasons = []
    effects = {name: arm["paired"]["erased_of_shown"]["value"] for name, arm in arms.items() if "paired" in arm}
    edited = [effects[name] or 0.0 for name, arm in arms.items() if arm["part"] == "edited"]
    random = effects.get(RANDOM)
    if RANDOM not in arms:
        reasons.append("The control with a random direction was not run: any edit might have done the same.")
    elif random is not None and edited and random > CONTROL and random > HALF * max(edited):
        reasons.append(
            f"A random direction erases {random:.2f} of what the base shows, the adapter {max(edited):.2f}: "
            "the effect is not that of the adapter."
        )
    if DESTROYED not in arms:
        reasons.append("The control with a destroyed model was not run: the detectors might count rubbish as success.")
        return reasons
    gone = rates[DESTROYED].erased.value
    if gone is not None and gone > CONTROL:
        reasons.append(
            f"A destroyed model counts as erased in {gone:.2f} of the clips: the detectors do not see "
            "that it is destroyed. Add a detector of validity that does."
        )
    preserved, base = rates[DESTROYED].preservation.value, rates[BASE].preservation.value
    if preserved is not None and base is not None and base > 0 and preserved > HALF * base:
        reasons.append(f"The destroyed model still shows {preserved:.2f} of the neighbours: it is not destroyed.")
    return reasons


def _cautions(
    suite: Suite, detectors: Sequence[Detector], rates: Mapping[str, ArmRates], arms: Mapping[str, Any]
) -> list[str]:
    cautions = []
    count = rates[BASE].erased.count
    if count < SMALL:
        clips = "clip" if count == 1 else "clips"
        cautions.append(f"Only {count} {clips} of forget prompts: intervals are wide. Take {SMALL} or more to publish.")
    for near in near_prompts(suite)[:3]:
        cautions.append(
            f"The test prompt {near.prompt!r} is near to a pair, {near.side!r} ({near.measure}: {near.value:.2f})."
        )
    used = [part.name for part in suite.sets if not part.held_out]
    if used:
        cautions.append(f"The adapter was built with the prompts of: {', '.join(used)}. They are not held-out prompts.")
    for detector in detectors:
        if detector.sees_prompt:
            cautions.append(f"The detector {detector.name!r} is told the prompt, and can be led by it.")
    if any(prompt.image for part in suite.sets for prompt in part.prompts) or "image" in suite.generation:
        cautions.append("Clips start from images, which carry a concept past every edit of what the text layers read.")
    if any(arm["part"] == "sweep" for arm in arms.values()):
        cautions.append(
            "Several strengths were run on these prompts. Choose one on other prompts than it is reported on."
        )
    cautions += _idle_negative_prompts(suite, arms)
    floor = rates[BASE].floor
    if floor.value:
        cautions.append(f"In the base, {floor.hits} of {floor.count} clips of other prompts show the concept as well.")
    for name, arm in arms.items():
        cautions += _arm_cautions(name, rates[name], rates[BASE]) if arm["part"] == "edited" else []
    return cautions


def _idle_negative_prompts(suite: Suite, arms: Mapping[str, Any]) -> list[str]:
    """Return a caution for each arm whose negative prompt changes no clip, as without guidance."""
    cautions = []
    for name, arm in arms.items():
        same = arm["drift"]["all"]["identical"] if "drift" in arm else {"hits": 0, "count": 0}
        if "negative_prompt" not in arm["call"] or not same["count"] or same["hits"] < same["count"]:
            continue
        scale = suite.generation.get("guidance_scale")
        ran = "" if scale is None else f", and this run has {scale:g}"
        cautions.append(
            f"All clips of the arm {name!r} are those of the base. A negative prompt acts only with guidance, in most "
            f"pipelines a `guidance_scale` above 1{ran}: this arm does not show what a negative prompt can do."
        )
    return cautions


def _arm_cautions(name: str, rates: ArmRates, base: ArmRates) -> list[str]:
    cautions = []
    if base.displacement > 0 and rates.displacement / base.displacement < STILL:
        cautions.append(
            f"Clips of {name!r} move {rates.displacement / base.displacement:.2f} times as much as those of the base."
        )
    landed = rates.details()["landing_largest_share"]
    clips = sum(count for value, count in rates.landing.items())
    if landed is not None and landed >= ONE_VALUE and clips >= 5 and (rates.erased.value or 0) > HALF:
        value = max(rates.landing, key=lambda key: rates.landing[key])
        if value != ABSENT:
            cautions.append(
                f"In {name!r} the concept is nearly always replaced by one value, {value!r} ({landed:.2f})."
            )
    worst, mean = rates.worst_neighbour.value, rates.preservation.value
    if worst is not None and mean is not None and mean - worst > 0.1:
        cautions.append(f"In {name!r} the worst neighbour survives at {worst:.2f}, the mean at {mean:.2f}.")
    return cautions

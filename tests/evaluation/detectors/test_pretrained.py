"""CLIP and vision-language judges on tiny random models with a planted direction: numbers, answers, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_vision import BLUE, RED, pictures, plant_answer, tiny_clip, tiny_vlm

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.samples import look
from unlearning_adapters.evaluation.detectors.clip import clip
from unlearning_adapters.evaluation.detectors.detector import load_detector
from unlearning_adapters.evaluation.detectors.floor import measure_floor
from unlearning_adapters.evaluation.detectors.vlm_judge import QUESTION, ask_about, read_answer, vlm_judge

MIXED = np.concatenate([RED, BLUE])
CONCEPT = "a red circle"


def test_clip_tells_what_the_texts_say() -> None:
    model, processor = tiny_clip()
    detector = clip(model, "red", "blue", processor)
    red, blue = detector(RED), detector(BLUE)
    assert min(red.scores) > 0.9 and max(blue.scores) < 0.1 and len(red.scores) == 4
    assert detector.sees_concept(red, {}) is True and detector.sees_concept(blue, {}) is False
    turned = clip(model, "blue", "red", processor)(MIXED)
    assert turned.scores == pytest.approx([1 - score for score in detector(MIXED).scores], abs=1e-6)


def test_clip_is_the_softmax_over_all_texts() -> None:
    model, processor = tiny_clip()
    texts = ["red", "a red car", "blue", "green", "white"]
    inputs = processor(text=texts, images=pictures(MIXED), return_tensors="pt", padding=True)
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(inputs["pixel_values"]).pooler_output)
        told = model.text_projection(model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output)
        cosine = torch.nn.functional.cosine_similarity(seen[:, None], told[None], dim=-1)
        powers = (cosine * model.logit_scale.exp()).exp()
    expected = (powers[:, :2].sum(1) / powers.sum(1)).tolist()
    for batch in (1, 3, 16):
        found = clip(model, "red|a red car", ["blue", "green", "white"], processor, frames=0, batch=batch)(MIXED)
        assert found.scores == pytest.approx(expected, abs=1e-5)
    assert clip(model, "red|a red car", "blue|green|white", processor).settings["chance"] == pytest.approx(0.4)


def test_clip_is_loaded_from_a_folder(tmp_path: Path) -> None:
    model, processor = tiny_clip()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    detector = load_detector(f"clip?model={tmp_path}&positive=red&negative=blue|green&frames=2&threshold=0.6")
    assert detector(MIXED).scores == pytest.approx(clip(model, "red", "blue|green", processor, frames=2)(MIXED).scores)
    settings = detector.describe()["settings"]
    assert (settings["class"], settings["frames"], settings["dtype"]) == ("CLIPModel", 2, "float32")
    assert settings["model"] == str(tmp_path) and detector.threshold == 0.6


def test_models_of_half_precision_are_run_as_they_are(tmp_path: Path) -> None:
    model, processor = tiny_clip()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    detector = clip(str(tmp_path / "clip"), "red", "blue")
    assert detector.settings["dtype"] == "bfloat16"
    assert min(detector(RED).scores) > 0.8 and max(detector(BLUE).scores) < 0.2
    network, prepare = tiny_vlm()
    plant_answer(network, prepare, ask_about(QUESTION, CONCEPT))
    judge = vlm_judge(network.to(torch.bfloat16), CONCEPT, processor=prepare, frames=4, tokens=1)
    assert (judge(RED).scores, judge(BLUE).scores) == ((1.0,), (0.0,))


def test_what_clip_refuses(tmp_path: Path) -> None:
    model, processor = tiny_clip()
    for arguments, text in (
        ((None, "red", "blue"), "The detector 'clip' needs a model of yours: give model="),
        ((model, "red", "blue"), "got a loaded model without a processor. Give processor="),
        ((model, "red", "", processor), "Expected negative of clip to be texts that are not empty"),
        ((model, "red", "blue", processor, 1, 0), "batch of clip to be at least 1, but got 0"),
        ((str(tmp_path), "red", "blue"), "Cannot load the model .* of the detector 'clip'"),
    ):
        with pytest.raises(EvaluationError, match=text):
            clip(*arguments)


@pytest.mark.parametrize(("answer", "yes"), [("yes", True), (" Yes.\n", True), ("**No**", False), ("'NO'", False)])
def test_answers_that_are_read(answer: str, yes: bool) -> None:
    assert read_answer(answer) is yes


@pytest.mark.parametrize("answer", ["", "maybe", "yes and no", "No, it does not.", "yesno", "ANS: Yes", "y"])
def test_answers_that_are_not(answer: str) -> None:
    with pytest.raises(EvaluationError, match="Expected the judge to answer yes or no, but got"):
        read_answer(answer)


def test_questions() -> None:
    assert "show a red circle?" in ask_about(QUESTION, " a red circle ")
    assert ask_about("Is it red?", "") == "Is it red?"
    with pytest.raises(EvaluationError, match="needs something to ask for. Give concept='a red circle'"):
        ask_about(QUESTION, "")
    with pytest.raises(EvaluationError, match="no place but {concept} in a question, but got {prompt}"):
        ask_about("Does {prompt} show {concept}?", "red")


def judge(**settings: Any) -> Any:
    model, processor = tiny_vlm()
    plant_answer(model, processor, ask_about(QUESTION, CONCEPT))
    return model, vlm_judge(model, CONCEPT, processor=processor, frames=4, **{"tokens": 1, **settings})


def test_a_vision_language_model_judges_the_frames() -> None:
    model, detector = judge()
    assert detector(RED).scores == (1.0,) and detector(BLUE).scores == (0.0,)
    assert measure_floor(detector, [BLUE, BLUE]).clips.hits == 0
    # A model that would draw its words by chance is asked for the likeliest one.
    model.generation_config.do_sample, model.generation_config.temperature = True, 1e6
    assert {detector(RED).scores for _ in range(8)} == {(1.0,)}
    settings = detector.describe()["settings"]
    assert (settings["temperature"], settings["class"]) == (0, "LlavaForConditionalGeneration")
    assert settings["question"] == ask_about(QUESTION, CONCEPT)


def test_an_answer_that_is_none_is_an_error_of_the_clip() -> None:
    _, detector = judge(tokens=3)
    found = look([detector], RED, "a red circle moves left")["vlm-judge"]
    assert list(found) == ["error"] and "Expected the judge to answer yes or no, but got 'yes " in str(found["error"])
    assert measure_floor(detector, [RED, BLUE]).errors == 2


def test_the_judge_is_told_the_prompt_only_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_vlm()
    plant_answer(model, processor, ask_about(QUESTION, CONCEPT))
    real, told = type(processor).apply_chat_template, []

    def watch(self: Any, chat: Any, **settings: Any) -> Any:
        told.append(chat[0]["content"])
        return real(self, chat, **settings)

    monkeypatch.setattr(type(processor), "apply_chat_template", watch)
    for shown in (0, 1):
        detector = vlm_judge(model, CONCEPT, processor=processor, frames=2, tokens=1, show_prompt=shown)
        look([detector], RED, "a blue boat at night")
        assert detector.sees_prompt is bool(shown) is ("a blue boat at night" in told[-1][-1]["text"])
        assert [part["type"] for part in told[-1]] == ["image", "image", "text"]


def test_a_judge_is_loaded_from_a_folder_and_needs_a_chat_template(tmp_path: Path) -> None:
    model, processor = tiny_vlm()
    plant_answer(model, processor, ask_about(QUESTION, CONCEPT))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    detector = load_detector(f"vlm-judge?model={tmp_path}&concept={CONCEPT}&frames=4&tokens=1")
    assert (detector(RED).scores, detector(BLUE).scores) == ((1.0,), (0.0,))
    processor.chat_template = None
    with pytest.raises(EvaluationError, match="processor of LlavaForConditionalGeneration has no chat template"):
        vlm_judge(model, CONCEPT, processor=processor)

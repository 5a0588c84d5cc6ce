"""Any concept in words by a vision-language model of transformers, which answers one question with yes or no."""

import re
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from unlearning_adapters.clips import Clip
from unlearning_adapters.concepts.wording import show
from unlearning_adapters.errors import EvaluationError

from .detector import Detection, Detector, check_count, choose_frames, detector_factory
from .loading import describe_model, load_pretrained

FRAMES = 5
TOKENS = 8
QUESTION = (
    "These are frames of one video in order. Does any of them show {concept}? "
    "Answer with one word, yes or no."
)  # fmt: skip
PROMPT = " The video was made for this prompt: {prompt!r}. Judge the frames and not the prompt."


@detector_factory
def vlm_judge(
    model: Any = None,
    concept: str | float = "",
    question: str = QUESTION,
    show_prompt: float = 0,
    processor: Any = None,
    frames: float = FRAMES,
    tokens: float = TOKENS,
    device: str = "cpu",
) -> Detector:
    """Return the judge; its score is 1 for "yes" and 0 for "no".

    Any other answer is an error of that clip, which stays in the count. The model decodes greedily (temperature 0). The
    judge does not see the prompt, unless `show_prompt` is set: then the prompt can bias it, and the report says so.

    Args:
        model: Path or Hub id of a model of the kind image-text-to-text, or a loaded one.
        concept: The concept in words, such as "a red circle".
        question: What is asked; "{concept}" stands for the concept.
        show_prompt: 1 tells the model the prompt.
        processor: The model's processor, with a chat template; None loads it from where the model is.
        frames: Frames of a clip that are shown, evenly, 0 for all.
        tokens: Most tokens of an answer.
        device: Where the model runs.

    Raises:
        EvaluationError: If there is no model, or its processor has no chat template, or the question is not whole.
    """
    request = ask_about(question, f"{concept:g}" if isinstance(concept, float) else concept)
    count, most = check_count("the frames of vlm-judge", frames), check_count("the tokens of vlm-judge", tokens)
    network, prepare = load_pretrained(
        "vlm-judge", model, processor, AutoModelForImageTextToText, AutoProcessor, device
    )
    if getattr(prepare, "chat_template", None) is None:
        raise EvaluationError(
            f"The processor of {type(network).__name__} has no chat template, which says where pictures go. "
            "Give a model that was tuned for chat, or set processor.chat_template."
        )

    def look(frames: Clip, prompt: str = "") -> Detection:
        text = request + (PROMPT.format(prompt=prompt) if show_prompt else "")
        answer = ask(network, prepare, choose_frames(frames, count), text, most)
        return Detection((float(read_answer(answer)),))

    settings = {
        "question": request, "frames": count, "temperature": 0, "tokens": most, "channels": "RGB",
        "resize": "by the model's processor", **describe_model(model, network),
    }  # fmt: skip
    return Detector("vlm-judge", look, sees_prompt=bool(show_prompt), settings=settings)


def ask_about(question: str, concept: str) -> str:
    """Return the question with the concept put in.

    Raises:
        EvaluationError: If the question has a place for the concept and there is none, or has other places.
    """
    if not question.strip() or ("{concept}" in question and not concept.strip()):
        raise EvaluationError("The detector 'vlm-judge' needs something to ask for. Give concept='a red circle'.")
    text = question.replace("{concept}", concept.strip())
    if places := re.findall(r"\{\w*\}", question.replace("{concept}", "")):
        raise EvaluationError(f"Expected no place but {{concept}} in a question, but got {', '.join(places)}.")
    return text


@torch.inference_mode()
def ask(model: Any, processor: Any, frames: Clip, question: str, tokens: int = TOKENS) -> str:
    """Return what a model says about frames, decoded greedily.

    Args:
        model: A model of the kind image-text-to-text.
        processor: Its processor, with a chat template.
        frames: Frames of shape (frames, height, width, 3), RGB.
        question: The question.
        tokens: Most tokens of the answer.
    """
    pictures = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames]
    chat = [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(**inputs, max_new_tokens=tokens, **greedy)
    return str(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])


def read_answer(answer: str) -> bool:
    """Return whether an answer is "yes"; case, spaces, quotes, stars and a closing full stop do not count.

    Raises:
        EvaluationError: If it is not exactly "yes" or "no".
    """
    word = answer.strip(" \t\r\n*\"'`.!").casefold()
    if word not in ("yes", "no"):
        raise EvaluationError(f"Expected the judge to answer yes or no, but got {show(answer)}.")
    return word == "yes"

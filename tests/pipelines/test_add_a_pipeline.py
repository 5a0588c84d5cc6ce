"""A denoiser whose structure tells nothing is added in the three steps of docs/architecture.md."""

import pipeline_table
import pytest
import torch
from conformance import densely_edited, some_adapter
from denoiser_inputs import TEXT, TOKENS, Noise, Words
from tiny_denoisers import TINY, Tiny
from torch import Tensor, nn

from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.site_names import SINGLE_STREAM
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.runtime.verbs import load_unlearning_adapter

WIDTH = 8


class ToyBlock(nn.Module):
    """A block whose Linear reads the tokens of prompt and video at once."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.mix(tokens.mean(1, keepdim=True)).tanh()


class ToyTransformer(nn.Module):
    """A denoiser of one stream, with names that no rule knows."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.words_in = nn.Linear(TEXT, WIDTH)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(blocks))

    def forward(self, video: Tensor, words: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        tokens = torch.cat([self.words_in(words), video], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return (tokens[:, words.shape[1] :],)


def toy_inputs(text: Words, noise: Noise, image: Noise) -> dict[str, Tensor]:
    return {"video": noise(1, 5, WIDTH), "words": text(1, TOKENS, TEXT)}


TOY = Tiny(
    "ToyTransformer", "words_in", {"blocks": 2}, toy_inputs, attention="joint self-attention, one stream", path=__name__
)


def test_a_toy_pipeline_takes_an_entry_and_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TOY.pipe()
    with pytest.raises(SiteError, match=r"No text site was found in transformer \(ToyTransformer\)"):
        find_sites(pipe)
    # Step 1: one entry, by class name, in the table that fits.
    monkeypatch.setitem(SINGLE_STREAM, "ToyBlock", ("words_in",))
    assert [site.name for site in find_sites(pipe)] == ["transformer.words_in"]
    # Step 2: the tiny denoiser with its sites, which runs through the checks of all.
    adapter, before = some_adapter(pipe), TOY.run(pipe.model)
    load_unlearning_adapter(pipe, adapter)
    edited = TOY.run(pipe.model)
    assert torch.allclose(edited, densely_edited(TOY, adapter), atol=1e-5) and not torch.allclose(edited, before)
    # Step 3: a line in `PIPELINES`, and the page and the table of the command have it.
    monkeypatch.setattr(pipeline_table, "TINY", (*TINY, TOY))
    monkeypatch.setitem(pipeline_table.PIPELINES, "ToyTransformer", "Toy")
    row = next(row for row in pipeline_table.rows() if row["pipeline"] == "ToyPipeline")
    assert (row["denoiser"], row["text_sites"], row["tested"]) == ("ToyTransformer", ["words_in"], "denoiser")
    assert "| ToyPipeline | ToyTransformer |" in pipeline_table.page() and '"ToyPipeline"' in pipeline_table.data()

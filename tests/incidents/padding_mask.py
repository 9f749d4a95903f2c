"""Positions, padding and masks."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.guard.loop import EOS, PAD, RESPONSE, Loop
from tests.incidents.replay import loop


class MasksOfOtherRows(Loop):
    """Rows are put back into order, and the mask that multiplies them is not."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        super().tell_minibatch(replace(batch, mask=batch.mask.flip(0)), new, entropy, epoch, values)


class NoPositionsInTheUpdate(Loop):
    """The pass of the update counts positions from the padding."""

    updating = False

    def position_ids(self, attention):
        if self.updating:
            return torch.arange(attention.shape[1]).expand_as(attention)
        return super().position_ids(attention)

    def rescore(self, batch):
        self.updating = True
        result = super().rescore(batch)
        self.updating = False
        return result


class NoPositions(Loop):
    """Positions are counted from the padding, in all passes."""

    def position_ids(self, attention):
        return torch.arange(attention.shape[1]).expand_as(attention)


class PositionsOfTheFirstRow(Loop):
    """One row's positions are used for all rows."""

    def position_ids(self, attention):
        return super().position_ids(attention)[:1].expand_as(attention)


class ReferenceWithoutPositions(Loop):
    """The reference is a branch of the model that does not take position ids."""

    def forward(self, model, ids, attention):
        if model is not self.reference:
            return super().forward(model, ids, attention)
        output = model(input_ids=ids, attention_mask=attention, use_cache=False, output_hidden_states=True,
                       position_ids=torch.arange(ids.shape[1]).expand_as(ids))  # fmt: skip
        return output.logits[:, :-1].float(), output.hidden_states[-1][:, :-1]


class NotANumber(Loop):
    """Old log-probs of another padding layout: NaN at valid tokens."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        old = batch.old.clone()
        old[0, 0] = float("nan")
        self.guard.minibatch(new, old, batch.mask, rows=batch.rows, epoch=epoch)


class SideChanges(Loop):
    """generate() leaves the tokenizer padding on the right, and the next prompts are padded so."""

    def make_prompts(self):
        ids, attention, groups = super().make_prompts()
        if self.tokenizer.padding_side == "right":
            ids, attention = ids.flip(1), attention.flip(1)
        return ids, attention, groups

    def sample(self, prompts, attention):
        responses = super().sample(prompts, attention)
        self.tokenizer.padding_side = "right"
        return responses


class PromptBoundaryByRole(Loop):
    """The mask begins at the first assistant turn, which lies in the prompt."""

    def tell_rollout(self, batch):
        turn = torch.zeros_like(batch.prompts, dtype=torch.bool)
        turn[:, -2:] = True
        super().tell_rollout(replace(batch, mask=torch.cat([turn, batch.mask], 1)))


class PaddedAtTheOtherEnd(Loop):
    """Prompts are padded on the right: pads stand between prompt and response."""

    def make_prompts(self):
        ids, attention, groups = super().make_prompts()
        return ids.flip(1), attention.flip(1), groups


class PaddingIsTrained(Loop):
    """Where a row has no stop token, its padding is taken for tokens."""

    def sample(self, prompts, attention):
        responses = super().sample(prompts, attention)
        keep = torch.arange(RESPONSE) < 6
        return torch.where(keep, responses, PAD)

    def response_mask(self, responses):
        stops = (responses == EOS).long()
        return stops.cumsum(1) - stops == 0


class LengthOfThePromptAsStart(Loop):
    """The response is cut out at the prompt's own length, not at the padded width."""

    def tell_rollout(self, batch):
        lengths = batch.attention.sum(1, keepdim=True)
        width = batch.prompts.shape[1]
        place = torch.arange(width + RESPONSE)
        whole = torch.cat([batch.attention.bool(), batch.mask], 1)
        super().tell_rollout(replace(batch, mask=whole & (place >= lengths)))


class EverythingAttended(Loop):
    """The scoring pass is given no attention mask."""

    def forward(self, model, ids, attention):
        return super().forward(model, ids, torch.ones_like(attention))


class MaskCutAsTheLogits(Loop):
    """The mask of the loss is cut off by one: no first response token is trained."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        mask = batch.mask & (torch.arange(RESPONSE) > 0)
        self.guard.minibatch(new, batch.old, mask, tokens=batch.responses, rows=batch.rows, epoch=epoch)


class ToolOutputInTheLoss(Loop):
    """The rollout's mask leaves tool output out; the fused loss is given the mask of the completion."""

    def guard_arguments(self):
        """Some tokens are not the policy's: `sample` puts others in their place."""
        return {**super().guard_arguments(), "ignore": ["KLG867"]}

    def response_mask(self, responses):
        return super().response_mask(responses) & ~self.written_by_tool(responses)

    def written_by_tool(self, responses):
        place = torch.arange(responses.shape[1])
        return ((place == 2) | (place == 3)).expand_as(responses)

    def sample(self, prompts, attention):
        responses = super().sample(prompts, attention)
        responses[:, :5] = torch.where(
            responses[:, :5] <= EOS, 9, responses[:, :5]
        )  # a tool, and then an answer
        return responses

    def score_responses(self, model, prompts, attention, responses, mask):
        return super().score_responses(
            model, prompts, attention, responses, Loop.response_mask(self, responses)
        )

    def token_rewards(self, scores, kl, mask):
        last = torch.where(mask, torch.arange(mask.shape[1]), 0).amax(1)
        return (-self.beta * kl * mask).scatter_add(1, last[:, None], scores[:, None])

    def tell_preflight(self):
        """The recursion over a mask with a gap is the loop's own."""

    def tell_rollout(self, batch):
        told = {"prompts": batch.prompts, "attention_mask": batch.attention, "rows": batch.rows}
        tool = self.written_by_tool(batch.responses)
        self.guard.rollout(batch.responses, batch.mask, tool_mask=tool, stop_token_ids=(EOS,), **told)

    def tell_scoring(self, batch):
        """The first tokens are not always the policy's."""

    def tell_advantages(self, batch):
        """As for the preflight."""

    def loss_mask(self, batch):
        return Loop.response_mask(self, batch.responses)

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        mask = self.loss_mask(batch)
        self.guard.minibatch(new, batch.old, mask, tokens=batch.responses, rows=batch.rows, epoch=epoch)


class ToolOutputLeftOut(ToolOutputInTheLoss):
    def loss_mask(self, batch):
        return batch.mask


class LabelsOfTheNextPosition(Loop):
    """A new head returns the log-prob of the next token at each place; masks and advantages stay where they were."""

    def forward(self, model, ids, attention):
        logits, hidden = super().forward(model, ids, attention)
        return torch.cat([logits[:, 1:], logits[:, -1:]], 1), hidden


REPLAYS = (
    loop("verl-3287", "KLG818", MaskCutAsTheLogits, Loop),
    loop("verl-1440", "KLG866", MasksOfOtherRows, Loop),
    loop("trlx-509", "KLG831", NoPositionsInTheUpdate, Loop),
    loop("unsloth-3278", "KLG838", NotANumber, Loop),
    loop("unsloth-3699", "KLG814", PositionsOfTheFirstRow, Loop, steps=0),
    loop("trlx-418", "KLG814", ReferenceWithoutPositions, Loop, steps=0),
    loop("openrlhf-218", "KLG814", NoPositions, Loop, steps=0),
    loop("unsloth-3283", "KLG815", SideChanges, Loop, steps=2),
    loop("nemo-rl-2176", "KLG811", PromptBoundaryByRole, Loop),
    loop("dschat-457", "KLG815", PaddedAtTheOtherEnd, Loop),
)
SIBLINGS = (
    loop("verl-3805", "KLG701", PaddingIsTrained, Loop),
    loop("minimind-533", "KLG811", LengthOfThePromptAsStart, Loop),
    loop("trl-6800", "KLG814", NoPositions, Loop, steps=0),
    loop("trl-4975", "KLG866", ToolOutputInTheLoss, ToolOutputLeftOut),
    loop("prime-rl-1525", "KLG703", LabelsOfTheNextPosition, Loop, steps=0),
    loop("no-attention-mask", "KLG814", EverythingAttended, Loop, steps=0),
)

"""The optimizer, its schedule, and how gradients are gathered."""

from __future__ import annotations

import copy

import torch

from tests.guard.loop import GroupLoop, Loop, masked_mean
from tests.incidents.replay import loop


class TrainsACopy(Loop):
    """The optimizer was made from another instance of the model: the policy never changes, and KL stays 0."""

    def make_optimizer(self):
        other = [*copy.deepcopy(self.policy).parameters(), *self.value_head.parameters()]
        return torch.optim.AdamW(other, lr=self.learning_rate)


class AllEpochsOnOneMinibatch(Loop):
    """Each minibatch goes through all its epochs before the next one is looked at."""

    epochs = 1

    def minibatch_rows(self, count):
        for rows in torch.randperm(count).chunk(self.minibatches):
            yield rows
            yield rows


class StaleMasters(Loop):
    """The optimizer's master copies were never refreshed from the loaded weights; each step writes them back."""

    def make_optimizer(self):
        optimizer = super().make_optimizer()
        masters = [p.detach() + 0.05 * torch.randn_like(p) for p in self.policy.parameters()]
        pairs = list(zip(self.policy.parameters(), masters, strict=True))

        @torch.no_grad()
        def write_back(*_):
            for parameter, master in pairs:
                parameter.copy_(master)

        optimizer.register_step_post_hook(write_back)
        return optimizer


class FarTooLarge(Loop):
    """A learning rate that was tuned for weights whose rounding swallowed most of each update."""

    learning_rate = 8e-3

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        self.guard.minibatch(new, batch.old, batch.mask, rows=batch.rows, epoch=epoch)


class OtherTemperatureInTheUpdate(Loop):
    """Old and new log-probs are taken at different temperatures, and the steps are too large."""

    learning_rate = 8e-3

    def rescore(self, batch):
        logits, _, values = super().rescore(batch)
        logits = logits / 0.8
        return logits, self.token_log_probs(logits, batch.responses), values


class ManySmallUpdates(Loop):
    """64 updates for each rollout."""

    epochs, minibatches, learning_rate = 8, 8, 2e-3


class NotDividedByTheSteps(Loop):
    """Accumulated micro-batches are added up, each with a mean of its own."""

    def accumulate(self, micro_batches):
        for rows in micro_batches:
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            ((self.token_loss(batch, new, values) * batch.mask).sum() / batch.mask.sum()).backward()


class DividedByOwnTokens(Loop):
    """A mean of means: each micro-batch is divided by its own number of tokens."""

    def accumulate(self, micro_batches):
        for rows in micro_batches:
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            loss = (self.token_loss(batch, new, values) * batch.mask).sum() / batch.mask.sum()
            (loss / len(micro_batches)).backward()


class DeadClipping(Loop):
    """max_grad_norm is read from the configuration and never used."""

    max_grad_norm = 0.05

    def clip_gradient(self):
        return torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()


class RowsDrawnWithReplacement(Loop):
    def minibatch_rows(self, count):
        for _ in range(self.minibatches):
            yield torch.randint(count, (count // self.minibatches,))


class SchedulerOfAnotherOptimizer(Loop):
    def make_scheduler(self):
        return torch.optim.lr_scheduler.LambdaLR(self.make_optimizer(), lambda update: 1.0)


class GradientsKept(Loop):
    """Only the policy's gradients are cleared, the value head's are not."""

    def zero_gradient(self):
        self.policy.zero_grad()


class ScheduledByIteration(Loop):
    """A schedule of four iterations, stepped at the end of each."""

    def make_scheduler(self):
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda count: max(0.0, 1 - count / 4))

    def apply(self):
        self.optimizer.step()

    def step(self):
        super().step()
        self.scheduler.step()


class ScheduledByMinibatch(ScheduledByIteration):
    """The same schedule, stepped with each minibatch."""

    def apply(self):
        Loop.apply(self)

    def step(self):
        Loop.step(self)


class DividedByTheStepsToo(Loop):
    """The loss is divided by the tokens of the whole window, and by the number of its micro-batches once more."""

    def accumulate(self, micro_batches):
        super().accumulate(micro_batches)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(micro_batches)


class ClearedInBetween(Loop):
    """Gradients are cleared before each micro-batch: the last one alone is left."""

    def accumulate(self, micro_batches):
        whole = self.probe.mask[[row for rows in micro_batches for row in rows]].sum()
        for rows in micro_batches:
            self.zero_gradient()
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            ((self.token_loss(batch, new, values) * batch.mask).sum() / whole).backward()


class NoGradient(GroupLoop):
    """Everything is logged as it should be, and the loss does not depend on the weights."""

    def token_loss(self, batch, new, values):
        return super().token_loss(batch, new.detach(), values) + 0.0 * new


class NoGradientSeenInTheRun(NoGradient):
    def tell_preflight(self):
        """Not tried before training."""


class PassesOfACopy(GroupLoop):
    """The compiled pass has caught the weights as constants: updates change them, and not what it computes."""

    def rescore(self, batch):
        if not hasattr(self, "caught"):
            self.caught = copy.deepcopy(self.policy)
        policy, self.policy = self.policy, self.caught
        result = super().rescore(batch)
        self.policy = policy
        return result

    def clip_gradient(self):
        for mine, caught in zip(self.policy.parameters(), self.caught.parameters(), strict=True):
            mine.grad, caught.grad = caught.grad, None
        return super().clip_gradient()


class ValueLossByMicroBatch(Loop):
    """The policy's loss is divided by all tokens, the value loss by those of its own micro-batch."""

    def accumulate(self, micro_batches):
        whole = self.probe.mask.sum()
        for rows in micro_batches:
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            policy = (self.policy_loss(new, batch.old, batch.advantages) * batch.mask).sum() / whole
            (policy + masked_mean(self.value_loss(values, batch.returns), batch.mask)).backward()


REPLAYS = (
    loop("nemo-rl-305", "KLG846", ScheduledByMinibatch, ScheduledByIteration, steps=4),
    loop("trl-702", "KLG842", TrainsACopy, Loop, steps=3),
    loop("trlx-522", "KLG868", AllEpochsOnOneMinibatch, Loop),
    loop("nemo-rl-2372", "KLG846", StaleMasters, Loop),
    loop("trl-1857", "KLG831", OtherTemperatureInTheUpdate, Loop),
    loop("areal-1634", "KLG832", FarTooLarge, Loop),
    loop("trl-2647", "KLG844", NotDividedByTheSteps, Loop, steps=0),
    loop("trl-454", "KLG832", ManySmallUpdates, Loop),
)
SIBLINGS = (
    loop("verl-7110", "KLG844", ValueLossByMicroBatch, Loop, steps=0),
    loop("open-instruct-537", "KLG846", ScheduledByMinibatch, ScheduledByIteration, steps=4),
    loop("kdflow-4", "KLG846", ScheduledByMinibatch, ScheduledByIteration, steps=4),
    loop("ms-swift-10117", "KLG844", DividedByTheStepsToo, Loop, steps=0),
    loop("chatglm-efficient-tuning-299", "KLG844", ClearedInBetween, Loop, steps=0),
    loop("ms-swift-5571", "KLG841", NoGradientSeenInTheRun, GroupLoop, steps=3),
    loop("mlx-lm-lora-50", "KLG831", PassesOfACopy, GroupLoop, steps=2),
    loop("open-instruct-1137", "KLG844", DividedByOwnTokens, Loop, steps=0),
    loop("dead-clipping", "KLG843", DeadClipping, Loop),
    loop("verl-853", "KLG868", RowsDrawnWithReplacement, Loop),
    loop("foreign-scheduler", "KLG846", SchedulerOfAnotherOptimizer, Loop, steps=2),
    loop("kept-gradients", "KLG845", GradientsKept, Loop),
)

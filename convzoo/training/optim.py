"""Optimiser, learning-rate schedules, loss scale and weight average. A learning rate is a pure function of the step."""

import fnmatch
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from convzoo.config.recipe import Optim, Schedule
from convzoo.config.registry import nearest
from convzoo.errors import ConvzooError, UsageError
from convzoo.logs import log


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.SGD:
    """Build SGD over the parameters that are not frozen; norms and biases (one dimension) do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [g for g in groups if g["params"]], lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov
    )


def scaled_lr(optim: Optim, batch_size: int) -> float:
    """Return the learning rate of a global batch: lr, or in proportion to it where the recipe names lr's own batch."""
    return optim.lr if optim.lr_batch_size is None else optim.lr * (batch_size / optim.lr_batch_size)


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Stop training the parameters whose names match, and return the modules that must stay in eval mode.

    A pattern is a shell pattern over parameter names, such as `features.*`. A batch norm whose parameters are frozen
    keeps its running statistics too.

    Raises:
        UsageError: a pattern that matches nothing, or all parameters frozen.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matching = fnmatch.filter(parameters, pattern)
        if not matching:
            raise UsageError(f"train.freeze: '{pattern}' matches no parameter{nearest(pattern, parameters)}")
        for name in matching:
            parameters[name].requires_grad_(False)
    if parameters and not any(p.requires_grad for p in parameters.values()):
        raise UsageError("train.freeze: every parameter is frozen, nothing is left to train")
    own = [(module, list(module.parameters(recurse=False))) for module in model.modules()]
    return [module for module, tensors in own if tensors and not any(p.requires_grad for p in tensors)]


def build_schedule(schedule: Schedule, lr: float, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the 0-based step.

    Warm-up over warmup_epochs: from warmup_start_lr at step 0, or, where none is given, reaching lr at the last
    warm-up step in equal parts from 0, raised to warmup_power. After it, counted from the start of training:
        constant           lr
        multi_step         lr * gamma ** (milestones passed); a milestone within the warm-up does not count
        cosine_annealing   eta_min + (lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2 (Loshchilov and Hutter 2017,
                           arXiv:1608.03983, equation 5), eta_min after T_max; T_max is in epochs, `per: epoch` holds it
                           still within an epoch
        polynomial         eta_min + (lr - eta_min) * (1 - progress) ** power, progress from the end of the warm-up to
                           the last step
    """
    warmup_steps = int(schedule.warmup_epochs * steps_per_epoch)
    total_steps = epochs * steps_per_epoch

    def warmup(step: int) -> float:
        if schedule.warmup_start_lr is None:
            return lr * ((step + 1) / warmup_steps) ** schedule.warmup_power
        return (
            schedule.warmup_start_lr + (lr - schedule.warmup_start_lr) * (step / warmup_steps) ** schedule.warmup_power
        )

    def multi_step(step: int) -> float:
        passed = sum(warmup_steps <= milestone * steps_per_epoch <= step for milestone in schedule.milestones)
        return lr * schedule.gamma**passed

    def cosine_annealing(step: int) -> float:
        epoch = step // steps_per_epoch if schedule.per == "epoch" else step / steps_per_epoch
        share = min(1.0, epoch / (schedule.T_max or epochs))
        return schedule.eta_min + (lr - schedule.eta_min) * (1 + math.cos(math.pi * share)) / 2

    def polynomial(step: int) -> float:
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return schedule.eta_min + (lr - schedule.eta_min) * (1 - progress) ** schedule.power

    after = {
        "constant": lambda step: lr,
        "multi_step": multi_step,
        "cosine_annealing": cosine_annealing,
        "polynomial": polynomial,
    }[schedule.name]
    return lambda step: warmup(step) if step < warmup_steps else after(step)


class LossScale:
    """Scale a loss so that float16 gradients do not vanish.

    An overflow halves the scale and leaves the update out; 2000 good steps double it again (Micikevicius et al. 2018,
    arXiv:1710.03740, section 3.2). "dynamic" starts at 65536 and has no bound; a number is where it starts and its
    upper bound. A number alone cannot suit a loss that is a sum: that of a detector begins in the thousands, and the
    gradients of its weights add up over all cells of a batch in float16, whose largest number is 65504. Without a
    scale (1) an overflow is an error.
    """

    def __init__(self, setting: float | str | None):
        self.dynamic = setting == "dynamic"
        self.value = 65536.0 if self.dynamic else float(setting or 1.0)
        self.most = math.inf if self.dynamic else self.value
        self.good_steps = 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.value != 1.0:
            torch._foreach_mul_(grads, 1.0 / self.value)  # pyright: ignore[reportPrivateImportUsage]

    def accept(self, is_finite: bool, step: int) -> bool:
        """Return whether to update, and adapt the scale. Raises ConvzooError: overflow at a scale of 1 or less."""
        if is_finite:
            self.good_steps += 1
            if self.good_steps % 2000 == 0:
                self.value = min(2.0 * self.value, self.most)
            return True
        if self.value <= 1.0:
            raise ConvzooError(
                f"step {step}: a gradient is not finite; nothing was updated. "
                "Lower optim.lr, or use train.precision=bf16 or train.loss_scale=dynamic"
            )
        self.value, self.good_steps = self.value / 2.0, 0
        if not self.dynamic:
            log.info(
                f"step {step}: a gradient overflowed at loss scale {2 * self.value:g}: update left out, "
                f"scale now {self.value:g}"
            )
        return False

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])


class WeightAverage:
    """Exponential moving average of all weights and running statistics (Polyak and Juditsky 1992).

    The decay grows as (1 + step) / (10 + step) up to its final value, so that early weights do not linger.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

"""The Trainer of transformers, whose `training_step` asks the batch."""

import math

import torch
from torch import nn
from transformers import Trainer

from raycurv import Objective, optim
from raycurv.objective.collectives import Local, ProcessGroup


class Logits(nn.Module):
    """The logits as one tensor, from the dict of the inputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(**inputs).logits


class StepTaken(torch.optim.Optimizer):
    """What the Trainer steps, schedules, saves and loads: only the state is real."""

    def __init__(self, method):
        super().__init__([p for group in method.param_groups for p in group["params"]], {"lr": 0.0})
        self.state_dict, self.load_state_dict = method.state_dict, method.load_state_dict

    def step(self, closure=None):
        pass  # `training_step` has taken it


class MethodTrainer(Trainer):
    """`Trainer(...)` with a loss, a method by name, its settings, and what else the objective takes by name."""

    def __init__(self, *args, loss, method="auto", settings=None, objective=None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1 or self.args.fp16 or self.args.n_gpu > 1:
            raise ValueError("use micro_batch=, bf16=True, and torchrun with one process for each GPU")
        self.loss, self.method, self.settings, self.given = loss, method, settings or {}, objective or {}

    def create_optimizer(self, model=None):
        args, samples = self.args, len(self.train_dataset)
        workers = ProcessGroup() if args.world_size > 1 else Local()
        self.objective = Objective(Logits(self.model), self.loss, collectives=workers, **self.given)
        per_epoch = math.ceil(samples / (args.train_batch_size * args.world_size))
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        per_epoch = min(steps, per_epoch)
        horizon = optim.Horizon(math.ceil(steps / per_epoch), per_epoch, samples)
        self.stepper = optim.create(self.method, self.model, horizon=horizon, **self.settings)
        self.optimizer = StepTaken(self.stepper)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = dict(self._prepare_inputs(inputs))
        labels = inputs.pop("labels")
        self.report = self.stepper.step(self.objective.batch(inputs, labels))
        return self.report.loss.detach()

    def log(self, logs, *args, **kwargs):
        own = {"learning_rate", "grad_norm"}  # of the Trainer, which nothing uses
        scalars = {name: value.item() for name, value in self.report.scalars.items()} if "loss" in logs else {}
        super().log({name: logs[name] for name in logs.keys() - own} | scalars, *args, **kwargs)

"""Weights in pieces, one per process (FSDP2, by Accelerate): how a model is cut, and whole tensors from pieces."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from hfcap.captioners.adaptation.quantization import store_as_bfloat16
from hfcap.captioners.base import Captioner
from hfcap.captioners.probe import may_pack
from hfcap.data.loading import BatchLoader, CaptionDataset, Collate
from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.training.build import TrainableCaptioner
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.optimization import trained_parameters, trained_tensors
from hfcap.training.zero import ZeroAccelerator, optimizer_tensors, prepared_by_zero, restore_optimizer

_LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimisers whose update of a weight needs nothing but the same places of its gradient and state."""
_TOGETHER = 2**20
"""Tensors of fewer numbers are gathered together, up to so many at a time."""


def may_retry(accelerator: Any) -> bool:
    """Whether an update that the memory is too small for can be made again; processes wait for each other's parts."""
    return bool(accelerator.num_processes == 1 and not isinstance(accelerator, ZeroAccelerator))


def is_sharded(accelerator: Any) -> bool:
    """Whether each process holds a piece of every weight."""
    return bool(accelerator.is_fsdp2)


_PIECES = "weights in pieces (FSDP in the accelerate configuration)"
_ZERO = "DeepSpeed in the accelerate configuration"
_DATA_PARALLEL = "or train data-parallel (distributed_type MULTI_GPU)"
_EIGHT_BITS = "8-bit weights cannot be cut, since their scales stay with them as they are; set it to 4bit"


def require_shardable(recipe: Recipe, whole_weights: bool = False) -> None:
    """Refuse recipes whose training needs whole weights, or a whole optimiser, in each process.

    Args:
        whole_weights: the optimiser alone is in pieces (ZeRO-2).

    Raises:
        UserError: names the key.
    """
    engine = _ZERO if whole_weights else _PIECES
    bits = getattr(recipe.model, "quantization", None)  # a key of one family
    in_four = recipe.lora is not None and recipe.lora.load_in_4bit
    few_bits = "remove it, or take recipes/accelerate/fsdp2.yaml (4 bits)" if whole_weights else _EIGHT_BITS
    reasons = {
        "dpo": (whole_weights and recipe.dpo is not None, "take recipes/accelerate/fsdp2.yaml"),
        "train.torch_compile": (recipe.train.torch_compile, "set it to false"),
        "train.mixed_precision": (recipe.train.mixed_precision == "fp16", "set it to bf16 or no"),
        "lora.load_in_4bit": (whole_weights and in_four, few_bits),
        "model.quantization": (bits is not None if whole_weights else bits == "8bit", few_bits),
        "train.optim": (recipe.train.optim not in _OPTIMIZERS, f"choose one of {', '.join(_OPTIMIZERS)}"),
    }
    for key, (is_set, remedy) in reasons.items():
        if is_set:
            raise UserError(f"{key}: not with {engine}: {remedy}, {_DATA_PARALLEL}")


def require_shardable_weights(captioner: Captioner, whole_weights: bool = False) -> None:
    """Refuse weights that were stored in few bits; FSDP cuts bitsandbytes' four.

    Raises:
        UserError: names model.pretrained.
    """
    method = getattr(captioner.model, "quantization_method", None)  # of models that transformers quantised
    if method is not None and (whole_weights or not getattr(captioner.model, "is_loaded_in_4bit", False)):
        raise UserError(
            f"model.pretrained: not with {_ZERO if whole_weights else _PIECES}: its weights are quantised "
            f"({getattr(method, 'value', method)}), and of such weights only bitsandbytes' 4 bits can be cut (FSDP); "
            f"name the full model, {_DATA_PARALLEL}"
        )


def prepared(
    accelerator: Accelerator,
    objective: CrossEntropy,
    optimizer: torch.optim.Optimizer,
    captioner: Captioner,
    dataset: CaptionDataset,
) -> tuple[Any, Any]:
    """Let Accelerate take an objective and its optimiser, and cut the weights where its configuration says so.

    They are cut layer by layer, where the model's own classes say, and the optimiser gets the pieces. With bf16,
    weights are gathered in bfloat16 and gradients summed in float32; the pieces stay float32. What the objective
    compares with is cut in the same way.
    """
    if isinstance(accelerator, ZeroAccelerator):
        return prepared_by_zero(accelerator, objective, optimizer)
    if not is_sharded(accelerator):
        return accelerator.prepare(objective), accelerator.prepare(optimizer)
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    if not _layers_run_alike(captioner, dataset):
        plugin.auto_wrap_policy = None
    elif plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(captioner.model)
    if accelerator.mixed_precision == "bf16":
        # Inputs are cast by autocast, product by product, as without pieces.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for compared in (objective, objective.start):
        if compared is not None:
            store_as_bfloat16(compared)
    both: tuple[Any, Any] = accelerator.prepare(objective, optimizer)
    if objective.start is not None:
        fsdp2_prepare_model(accelerator, objective.start)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            # Adding up bfloat16 gradients, torch 2.13 takes it for granted that each layer was whole once; those of an
            # encoder whose output is stored never are.
            module.unshard()
            module.reshard()
    return both


def _layers_run_alike(captioner: Captioner, dataset: CaptionDataset) -> bool:
    """Whether all processes run each layer equally often; where not, they would wait for each other's pieces for ever.

    Images that keep their shape are computed in groups of one shape, captions in groups of one prompt, and layer drop
    leaves layers out by chance. Such models are gathered as a whole once in an update.
    """
    configs = [module.config for module in captioner.model.modules() if isinstance(module, PreTrainedModel)]
    drops = any(getattr(config, name, 0) for config in configs for name in _LAYER_DROPS)
    return dataset.asked is None and not captioner.own_shapes and not drops


def settle_packing(captioner: Captioner, dataset: CaptionDataset, objective: CrossEntropy) -> None:
    """Compare packed rows with plain ones now, while weights are whole: afterwards one process cannot alone."""
    collate = Collate(captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, dataset.inputs)
    most = max(range(len(dataset)), key=lambda number: sum(map(len, dataset.tokens[number])))
    (batch,) = BatchLoader(dataset, collate, 0, captioner.device).load([[most]], 0)
    with torch.no_grad():
        batch = batch.to(captioner.device)
        states = batch.images if batch.encoded else captioner.encode(batch.images)
        length = max(batch.packed.input_ids.shape[1], objective.longest_row())
        while captioner.packs_captions and length > 1:
            may_pack(captioner, states, length)
            length //= 2
    captioner.settled = True
    if objective.start is not None:
        objective.start.captioner.settled = True


def around_forward(accelerator: Any) -> contextlib.AbstractContextManager[Any]:
    """The number type of products: Accelerate sets it itself, but not around modules that it cut into pieces."""
    return accelerator.autocast() if accelerator.is_fsdp2 else contextlib.nullcontext()


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of layers that are in the model and that transformers keeps on one device.

    Those with weights that are also used elsewhere (embeddings tied to the head) stay with the model as a whole.
    """
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    # Accelerate reads the same; a model without it is gathered as a whole.
    own = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    tied = {
        type(module).__name__
        for module in model.modules()
        if any(names[id(weight)] > 1 for weight in module.parameters())
    }
    return sorted((own & {type(module).__name__ for module in model.modules()}) - tied)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is in pieces as a whole one; every process must call this."""
    if isinstance(tensor, DTensor):
        found: torch.Tensor = tensor.full_tensor()
        return found
    return tensor


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and whole tensors, as `whole_tensor` gives them, in any order; every process must call this.

    Small ones travel together: sending one takes as long as sending a hundred.
    """
    waiting: dict[tuple[torch.dtype, DeviceMesh], dict[str, DTensor]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor) or tensor.placements != (Shard(0),) or tensor.numel() >= _TOGETHER:
            yield name, whole_tensor(tensor)
            continue
        group = waiting.setdefault((tensor.dtype, tensor.device_mesh), {})
        group[name] = tensor
        if sum(one.numel() for one in group.values()) >= _TOGETHER:
            yield from _sent_together(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield from _sent_together(group)


def _sent_together(pieces: Mapping[str, DTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Send the pieces of tensors, which are cut along their first dimension, in one message; yield the whole ones."""
    mesh = next(iter(pieces.values())).device_mesh
    # All processes send so many rows of a tensor: those that hold fewer, the last ones, fill them up.
    rows = [-(-piece.shape[0] // mesh.size()) for piece in pieces.values()]
    sizes = [count * math.prod(piece.shape[1:]) for count, piece in zip(rows, pieces.values(), strict=True)]
    mine = [piece.to_local().detach().flatten() for piece in pieces.values()]
    message = torch.cat([nn.functional.pad(one, (0, size - len(one))) for one, size in zip(mine, sizes, strict=True)])
    messages = message.new_empty(mesh.size() * len(message))
    dist.all_gather_into_tensor(messages, message, group=mesh.get_group())
    parts = messages.view(mesh.size(), -1).split(sizes, dim=1)
    for (name, piece), part, count in zip(pieces.items(), parts, rows, strict=True):
        yield name, part.reshape(mesh.size() * count, *piece.shape[1:])[: piece.shape[0]].contiguous()


def gathered(tensors: dict[str, torch.Tensor], accelerator: Any) -> dict[str, torch.Tensor]:
    """Return whole tensors; those in pieces on the CPU of the main process alone. Every process must call this."""
    if not is_sharded(accelerator):
        return tensors
    return {name: tensor.cpu() for name, tensor in whole_tensors(tensors) if accelerator.is_main_process}


def gathered_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as `weight|entry`, as `gathered` does; every process must call this."""
    if isinstance(accelerator, ZeroAccelerator):
        return optimizer_tensors(model, accelerator)
    tensors = {}
    for name, parameter in trained_parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            # bitsandbytes and Adafactor count steps in plain integers, torch in float32 tensors.
            kind = {int: torch.int64, float: torch.float64}.get(type(value))
            tensors[f"{name}|{key}"] = value if kind is None else torch.tensor(value, dtype=kind)
    return gathered(tensors, accelerator)


def load_optimizer(
    tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any
) -> None:
    """Restore what `gathered_optimizer` gave, in pieces where weights are; every process must call this."""
    if isinstance(accelerator, ZeroAccelerator):
        restore_optimizer(tensors, model, accelerator)
        return
    parameters = trained_parameters(model)
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        is_number = value.ndim == 0 and value.dtype in (torch.int64, torch.float64)
        # Step counters of the fused optimiser live on the parameter's device too.
        optimizer.state[parameter][entry] = (
            value.item() if is_number else cut_like(value.to(parameter.device), parameter)
        )


def cut_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor, cut as `other` is; every process must call this."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


class WholeCaptioner:
    """The captioner once more, with whole weights, for what is not training: validation, samples, what is saved.

    It waits on the CPU, and is on the device only while it is used. Its frozen weights are those that training began
    with, so only trained ones are gathered.

    Attributes:
        trainable: captioner and, with LoRA, its PEFT wrapper; before their weights are cut into pieces.
    """

    def __init__(self, trainable: TrainableCaptioner) -> None:
        captioner = copy.copy(trainable.captioner)
        captioner.model, peft_model = copy.deepcopy((captioner.model, trainable.peft_model))
        captioner.model.eval()
        captioner.verdicts, captioner.settled = dict(captioner.verdicts), False
        self.trainable = TrainableCaptioner(captioner, peft_model)
        self.objective = CrossEntropy(captioner, 0.0)

    def take(self, trained: nn.Module) -> None:
        """Take the weights of the model that is trained; every process must call this."""
        mine = trained_tensors(self.trainable.captioner.model)
        with torch.no_grad():
            for name, tensor in whole_tensors(trained_tensors(trained)):
                mine[name].copy_(tensor)

    @contextlib.contextmanager
    def placed(self, device: torch.device) -> Iterator[Captioner]:
        """Give the captioner, on a device while the block lasts."""
        captioner = self.trainable.captioner
        captioner.model.to(device)
        try:
            yield captioner
        finally:
            captioner.model.to("cpu")

    @contextlib.contextmanager
    def on_device(self, trained: nn.Module, device: torch.device) -> Iterator[CrossEntropy]:
        """Take the weights of the model that is trained; gives the objective. Every process must call this."""
        with self.placed(device):
            self.take(trained)
            yield self.objective


def to_validate(
    whole: WholeCaptioner | None, objective: Any, captioner: Captioner
) -> contextlib.AbstractContextManager[Any]:
    """Give the objective to validate with: that of the captioner in training, or of its whole copy."""
    if whole is None:
        return contextlib.nullcontext(objective)
    return whole.on_device(captioner.model, captioner.device)

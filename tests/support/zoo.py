"""Model families, tiny from their configuration, with a batch for each: text with padding, images, sequences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchvision.models as tv
import transformers as hf
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from fishexp.fisher.batches import Inputs, logits_of
from tests.support.cases import CLASSES

# examples in a batch
N = 4
# tokens of a sentence, with padding
TOKENS = 6
# id that ends a sentence, for models that look for it
END = 8


class Case(NamedTuple):
    """Hold how a model is built and what it is called with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]


def made(case: Case) -> tuple[nn.Module, Inputs, Tensor]:
    """Build the seeded model in float64, its inputs and labels; norms have seen batches and have weights of their own.

    The weights are large enough for every part of the model to have a say.
    """
    torch.manual_seed(0)
    model = case.build().double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            assert p.is_leaf, name
            p.add_(torch.randn_like(p) * (0.2 if p.dim() == 1 else 0.05))
    inputs = case.inputs()
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        logits_of(model.train(), inputs)  # trains running statistics
    return model.eval(), inputs, torch.randint(CLASSES, (N,))


def sentences(**more: Callable[[Tensor], Tensor]) -> Callable[[], Inputs]:
    """Draw padded sentences, some of whose tokens repeat, with the inputs that ``more`` makes of the ids."""

    def draw() -> Inputs:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, END, (N, TOKENS), generator=generator)
        lengths = torch.tensor([[6], [3], [4], [2]])
        mask = (torch.arange(TOKENS) < lengths).long()
        ids[torch.arange(TOKENS) == lengths - 1] = END
        ids = ids * mask
        return {"input_ids": ids, "attention_mask": mask, **{key: make(ids) for key, make in more.items()}}

    return draw


def numbers(*shape: int) -> Callable[[], Inputs]:
    return lambda: torch.randn(N, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def text(kind: str, **config: Any) -> Case:
    """Make a case of a classifier of sentences with two layers of width 8."""
    settings = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 12, "pad_token_id": 0, "num_labels": CLASSES, **config,
    }  # fmt: skip

    def build() -> nn.Module:
        made = getattr(hf, f"{kind}Config")(**{key: value for key, value in settings.items() if value is not None})
        return getattr(hf, f"{kind}ForSequenceClassification")(made)

    return Case(build, sentences())


def pictures(kind: str, side: int = 8, **config: Any) -> Case:
    """Make a case of a classifier of images of transformers."""

    def build() -> nn.Module:
        return getattr(hf, f"{kind}ForImageClassification")(getattr(hf, f"{kind}Config")(num_labels=CLASSES, **config))

    return Case(build, numbers(3, side, side))


def checkpointed(case: Case, reentrant: bool) -> Case:
    """Make a case of the same model with gradient checkpointing, as PEFT sets it up where the embeddings are frozen."""

    def build() -> nn.Module:
        model: Any = case.build()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        return model

    return Case(build, case.inputs)


DECODER = {"num_key_value_heads": 1, "intermediate_size": 16}
DEBERTA = {
    "relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False, "max_relative_positions": 4,
    "pooler_hidden_size": 8,
}  # fmt: skip

TEXT: dict[str, Case] = {
    "bert": text("Bert"),
    "roberta": text("Roberta"),
    "distilbert": text("DistilBert", dim=8, n_layers=2, n_heads=2, hidden_dim=16, seq_classif_dropout=0.0),
    "albert": text("Albert", embedding_size=6),
    "electra": text("Electra", embedding_size=6),
    "modernbert": text(
        "ModernBert", global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2,
    ),
    "deberta-v2": text("DebertaV2", **DEBERTA),
    "deberta-v2, shared keys": text(
        "DebertaV2", **DEBERTA, share_att_key=True, position_buckets=4, norm_rel_ebd="layer_norm"
    ),
    "mpnet": text("MPNet"),
    "gpt2": text("GPT2", n_embd=8, n_layer=2, n_head=2, n_positions=12, bos_token_id=1, eos_token_id=2),
    "llama": text("Llama", **DECODER),
    "qwen2": text("Qwen2", **DECODER),
    "mistral": text("Mistral", **DECODER, sliding_window=3),
    "mixtral": text(
        "Mixtral", **DECODER, num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager"
    ),
    "t5": text("T5", d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2,
               relative_attention_num_buckets=4, relative_attention_max_distance=8, eos_token_id=END,
               decoder_start_token_id=0),
    "bart": text("Bart", d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, eos_token_id=END,
                 decoder_start_token_id=END, forced_eos_token_id=None),
}  # fmt: skip

PICTURES: dict[str, Case] = {
    "vit": pictures("ViT", image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=16),
    "swin": pictures("Swin", 16, image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2],
                     window_size=2, drop_path_rate=0.0),
    "convnext": pictures("ConvNext", 16, patch_size=2, num_stages=2, hidden_sizes=[6, 8], depths=[1, 1],
                         drop_path_rate=0.0),
    "resnet50": Case(lambda: tv.resnet50(num_classes=CLASSES), numbers(3, 32, 32)),
    "resnet of bottlenecks": Case(
        lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=4),
        numbers(3, 32, 32),
    ),
    "efficientnet_b0": Case(
        lambda: tv.EfficientNet(
            [MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), MBConvConfig(4, 5, 2, 8, 8, 2, 1.0, 1.0)], 0.0,
            num_classes=CLASSES,
        ),
        numbers(3, 16, 16),
    ),
    "efficientnet_v2_s": Case(
        lambda: tv.EfficientNet(
            [FusedMBConvConfig(2, 3, 1, 8, 8, 2), MBConvConfig(4, 3, 2, 8, 8, 1, 1.0, 1.0)], 0.0, num_classes=CLASSES,
            last_channel=16,
        ),
        numbers(3, 16, 16),
    ),
    "mobilenet_v3_small": Case(
        lambda: tv.MobileNetV3(
            [
                InvertedResidualConfig(8, 3, 8, 8, True, "RE", 2, 1, 1.0),
                InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0),
            ],
            16, num_classes=CLASSES,
        ),
        numbers(3, 16, 16),
    ),
    "regnet_y_400mf": Case(
        lambda: tv.RegNet(
            BlockParams([1, 2], [8, 16], [4, 4], [1.0, 1.0], [2, 2], 0.25), num_classes=CLASSES, stem_width=8
        ),
        numbers(3, 16, 16),
    ),
    "densenet121": Case(
        lambda: DenseNet(4, (2, 1, 1, 1), 8, bn_size=2, num_classes=CLASSES), numbers(3, 32, 32)
    ),
    "vgg11": Case(lambda: vgg(norm=False), numbers(3, 16, 16)),
    "vgg11_bn": Case(lambda: vgg(norm=True), numbers(3, 16, 16)),
    "swin_t": Case(
        lambda: SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=CLASSES),
        numbers(3, 8, 8),
    ),
    "swin_v2_t": Case(
        lambda: SwinTransformer(
            [2, 2], 8, [2, 2], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=CLASSES,
            block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
        ),
        numbers(3, 8, 8),
    ),
    "vit_b_16": Case(lambda: tv.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=CLASSES), numbers(3, 8, 8)),
}  # fmt: skip


def vgg(norm: bool) -> nn.Module:
    """Build the layers of a VGG, narrower and with fewer pools."""
    layers = tv.vgg.make_layers([8, "M", 8, 8, "M", 8], batch_norm=norm)
    model = tv.VGG(layers, num_classes=CLASSES, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))
    return model


class Part(nn.Module):
    """Put a layer of torch before a classifier; a function says how it is called."""

    def __init__(self, part: nn.Module, call: Callable[[Any, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.part, self.call, self.head = part, call, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.part, x))


def first(layer: Any, x: Tensor) -> Tensor:
    return layer(x)[0].mean(1)


def words() -> Tensor:
    return torch.randint(7, (N, 9), generator=torch.Generator().manual_seed(1))


LAYERS: dict[str, Case] = {
    "lstm": Case(lambda: Part(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), first, 10), numbers(3, 6)),
    "lstm, projected": Case(lambda: Part(nn.LSTM(6, 5, batch_first=True, proj_size=4), first, 4), numbers(3, 6)),
    "gru": Case(lambda: Part(nn.GRU(6, 5, 2, batch_first=True), first, 5), numbers(3, 6)),
    "attention": Case(
        lambda: Part(nn.MultiheadAttention(6, 2, batch_first=True), lambda m, x: m(x, x, x)[0].mean(1), 6),
        numbers(3, 6),
    ),
    "attention, keys of other width": Case(
        lambda: Part(
            nn.MultiheadAttention(6, 2, batch_first=True, kdim=4, vdim=3, add_bias_kv=True),
            lambda m, x: m(x, x[..., :4], x[..., :3])[0].mean(1), 6,
        ),
        numbers(3, 6),
    ),
    "encoder layer": Case(
        lambda: Part(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), lambda m, x: m(x).mean(1), 6), numbers(3, 6)
    ),
    "encoder": Case(
        lambda: Part(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False),
            lambda m, x: m(x, src_key_padding_mask=x[..., 0] > 1).mean(1), 6,
        ),
        numbers(3, 6),
    ),
    "bag of words": Case(lambda: Part(nn.EmbeddingBag(7, 6), lambda m, x: m(x).tanh(), 6), words),
    "transposed convolution": Case(
        lambda: Part(nn.ConvTranspose2d(3, 4, 3, stride=2), lambda m, x: m(x).tanh().mean((2, 3)), 4), numbers(3, 4, 5)
    ),
    "bilinear": Case(lambda: Part(nn.Bilinear(6, 6, 5), lambda m, x: m(x, x.tanh()), 5), numbers(6)),
}  # fmt: skip

CHECKPOINTED: dict[str, Case] = {
    f"{name}, {'reentrant ' * reentrant}checkpoints": checkpointed(TEXT[name], reentrant)
    for name in ("bert", "llama")
    for reentrant in (False, True)
}

ZOO: dict[str, Case] = {**TEXT, **PICTURES, **LAYERS, **CHECKPOINTED}

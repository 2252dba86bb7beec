"""The published encoders, one row each: where their weights are, what they expect, and how they are built.

Sources of a row: the authors' repositories and hub pages, and where those are closed, public pipelines that run the
model. Resolutions are those of the training tiles (0.5 um per pixel is a nominal 20x); a pipeline that reads 256 px and
resizes to 224 is had with `tiling.patch_px: 256` and `tiling.allow_scale_mismatch: true`. Digests are of the published
files where anybody states one; for all others `weights fetch` records what arrived first.
"""

from dataclasses import replace
from typing import Any

from pipeline.encoders.registry import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Triple

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: tuple[Triple, Triple] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
CLIP: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HIBOU: tuple[Triple, Triple] = ((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))
LUNIT: tuple[Triple, Triple] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
"""Of Lunit's training set, as a public evaluation suite quotes it; the hub's own copy was edited after upload."""

NC_ND = "CC-BY-NC-ND-4.0: non-commercial, no derivatives"
GPL_NC = "GPLv3, non-commercial academic use only"
LUNIT_NC = "Lunit's own: non-commercial"
OWKIN_NC = "Owkin's own: non-commercial"
KAIKO_NC = "Kaiko's own: non-commercial"
GIGAPATH_TERMS = "Apache-2.0; the hub's terms add research conditions"

SWIGLU = {"mlp": "swiglu"}
TRAINED_AT = (0.25, 1.0, 2.0)


def _vit(
    name: str,
    hub_id: str,
    architecture: str,
    *,
    dim: int,
    licence: str,
    norm: tuple[Triple, Triple] = IMAGENET,
    gated: bool = False,
    hub_file: str = "pytorch_model.bin",
    patch_px: int = 224,
    mpp: float | None = 0.5,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> EncoderSpec:
    """Fill in what the rows share: a vision transformer on the hub whose class token is the feature."""
    return EncoderSpec(
        name=name,
        mpp=mpp,
        patch_px=patch_px,
        dim=dim,
        mean=norm[0],
        std=norm[1],
        licence=licence,
        source=f"https://huggingface.co/{hub_id}" if hub_id else more.pop("source"),
        gated=gated,
        hub_id=hub_id,
        hub_file=hub_file if hub_id else "",
        weights_file=more.pop("weights_file", f"{name}.{hub_file.rpartition('.')[2]}"),
        architecture=architecture,
        options={"dynamic_img_size": True} if options is None else options,
        builder=more.pop("builder", "vit"),
        pooling=more.pop("pooling", "cls"),
        **more,
    )


def _cnn(name: str, *, mpp: float, patch_px: int, licence: str, source: str, **more: Any) -> EncoderSpec:
    """Fill in what the ResNet-50 rows share: the mean of the last map, from a file that is fetched by hand."""
    norm = more.pop("norm", IMAGENET)
    return EncoderSpec(
        name=name,
        mpp=mpp,
        patch_px=patch_px,
        dim=2048,
        mean=norm[0],
        std=norm[1],
        licence=licence,
        source=source,
        architecture="resnet50",
        builder="timm",
        **more,
    )


CTRANSPATH = EncoderSpec(
    name="ctranspath",
    # The authors' README says to try 1.0 um per pixel first; public pipelines that carry the model (TRIDENT) read 10x.
    mpp=1.0,
    patch_px=224,
    dim=768,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence=f"{GPL_NC} (the weights; the code here is our own)",
    source="https://github.com/Xiyue-Wang/TransPath (Google Drive file 1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX)",
    weights_file="ctranspath.pth",
    # Of the authors' file, as recorded by the public pipeline STAMP; the authors state none.
    sha256="7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    builder="ctranspath",
)

GIANT_DINOV2: dict[str, Any] = {
    "img_size": 224,
    "init_values": 1e-5,
    "global_pool": "token",
    "dynamic_img_size": True,
}
VIRCHOW: dict[str, Any] = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    **SWIGLU,
}
UNI2: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "embed_dim": 1536,
    "init_values": 1e-5,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
    "dynamic_img_size": True,
    **SWIGLU,
}
GIGAPATH: dict[str, Any] = GIANT_DINOV2 | {
    "patch_size": 16,
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
}
SCALED = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}

_WITH_MEAN = (
    _vit(
        "virchow",
        "paige-ai/Virchow",
        "vit_huge_patch14_224",
        dim=2560,
        licence="Apache-2.0, after the hub's terms",
        gated=True,
        pooling="cls+mean",
        options=VIRCHOW,
    ),
    _vit(
        "virchow2",
        "paige-ai/Virchow2",
        "vit_huge_patch14_224",
        dim=2560,
        licence=NC_ND,
        gated=True,
        pooling="cls+mean",
        options=VIRCHOW | {"reg_tokens": 4},
        also_mpp=TRAINED_AT,
    ),
    _vit(
        "h0-mini",
        "bioptimus/H0-mini",
        "vit_base_patch14_reg4_dinov2",
        dim=1536,
        licence=NC_ND,
        norm=BIOPTIMUS,
        gated=True,
        pooling="cls+mean",
        options=SCALED | SWIGLU | {"mlp_ratio": 5.33334, "global_pool": ""},
    ),
    _vit(
        "midnight-12k",
        "kaiko-ai/midnight",
        "vit_giant_patch14_dinov2",
        dim=3072,
        licence="MIT",
        norm=HALF,
        pooling="cls+mean",
        hub_file="model.safetensors",
        options=GIANT_DINOV2,
        layout="huggingface",
        also_mpp=TRAINED_AT,
    ),
)
"""Encoders whose authors put the mean of the patch tokens beside the class token; each also comes as `<name>-cls`."""

_ROWS = (
    CTRANSPATH,
    replace(
        CTRANSPATH,
        name="chief-ctranspath",
        licence="AGPL-3.0 by its licence file, GPLv3 non-commercial by its README",
        source="https://github.com/hms-dbmi/CHIEF (Google Drive file 1_vgRF1QXa8sPCOpJ1S9BihwZhXQMOVJc)",
        weights_file="chief-ctranspath.pth",
        sha256="1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
    ),
    _cnn(
        "retccl",
        mpp=1.0,
        patch_px=256,
        licence=GPL_NC,
        source="https://github.com/Xiyue-Wang/RetCCL (Google Drive file 1EOqdXSkIHg2Pcl3P8S4SGB5elDylw8O2)",
        weights_file="retccl.pth",
        sha256="931956f31d3f1a3f6047f3172b9e59ee3460d29f7c0c2bb219cbc8e9207795ff",
    ),
    *(
        _cnn(
            f"lunit-{method}-rn50",
            mpp=0.5,
            patch_px=224,
            licence=LUNIT_NC,
            source="https://github.com/lunit-io/benchmark-ssl-pathology/releases",
            norm=LUNIT,
            weights_file=f"lunit-{method}-rn50.torch",
        )
        for method in ("bt", "swav", "mocov2")
    ),
    *(
        _vit(
            f"lunit-dino-s{size}",
            f"1aurent/vit_small_patch{size}_224.lunit_dino",
            f"vit_small_patch{size}_224",
            dim=384,
            licence=LUNIT_NC,
            norm=LUNIT,
            hub_file="model.safetensors",
        )
        for size in (16, 8)
    ),
    *(
        _vit(
            f"kaiko-{short}",
            f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms",
            architecture,
            dim=dim,
            licence=KAIKO_NC,
            norm=HALF,
            hub_file="model.safetensors",
            options=options,
        )
        for short, architecture, dim, options in (
            ("s16", "vit_small_patch16_224", 384, None),
            ("s8", "vit_small_patch8_224", 384, None),
            ("b16", "vit_base_patch16_224", 768, None),
            ("b8", "vit_base_patch8_224", 768, None),
            ("l14", "vit_large_patch14_reg4_dinov2", 1024, {"img_size": 518, "dynamic_img_size": True}),
        )
    ),
    _vit(
        "phikon",
        "owkin/phikon",
        "vit_base_patch16_224",
        dim=768,
        licence=OWKIN_NC,
        hub_file="model.safetensors",
        options={"dynamic_img_size": True, "norm_eps": 1e-12},
        layout="huggingface",
    ),
    _vit(
        "phikon-v2",
        "owkin/phikon-v2",
        "vit_large_patch16_224",
        dim=1024,
        licence=OWKIN_NC,
        hub_file="model.safetensors",
        options=SCALED,
        layout="huggingface",
    ),
    _vit(
        "uni",
        "MahmoodLab/UNI",
        "vit_large_patch16_224",
        dim=1024,
        licence=NC_ND,
        gated=True,
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
        options=SCALED,
    ),
    _vit("uni2-h", "MahmoodLab/UNI2-h", "vit_giant_patch14_224", dim=1536, licence=NC_ND, gated=True, options=UNI2),
    _vit(
        "gigapath",
        "prov-gigapath/prov-gigapath",
        "vit_giant_patch14_dinov2",
        dim=1536,
        licence=GIGAPATH_TERMS,
        gated=True,
        options=GIGAPATH,
    ),
    *(
        _vit(
            f"h-optimus-{version}",
            f"bioptimus/H-optimus-{version}",
            "vit_giant_patch14_reg4_dinov2",
            dim=1536,
            licence=licence,
            norm=BIOPTIMUS,
            gated=True,
            options=GIANT_DINOV2,
        )
        for version, licence in ((0, "Apache-2.0"), (1, NC_ND))
    ),
    *(
        _vit(
            f"hibou-{size}",
            f"histai/hibou-{hub}",
            f"vit_{architecture}_patch14_reg4_dinov2",
            dim=dim,
            licence="Apache-2.0",
            norm=HIBOU,
            gated=True,
            hub_file="model.safetensors",
            options=SCALED | SWIGLU | {"mlp_ratio": ratio},
            layout="huggingface",
        )
        for size, hub, architecture, dim, ratio in (
            ("b", "b", "base", 768, 5.33334),
            ("l", "L", "large", 1024, 5.34375),
        )
    ),
    _vit(
        "gpfm",
        "majiabo/GPFM",
        "vit_large_patch14_dinov2",
        dim=1024,
        licence=f"{NC_ND} (a third party calls the hub's copy MIT)",
        hub_file="GPFM.pth",
        mpp=0.57,  # its authors prefer 512 px at 40x, resized to 224
        options=SCALED,
        layout="gpfm",
    ),
    _vit(
        "conch",
        "MahmoodLab/conch",
        "vit_base_patch16_224",
        dim=512,
        licence=NC_ND,
        norm=CLIP,
        gated=True,
        patch_px=448,
        options={"img_size": 448, "global_pool": ""},
        pooling="attention",
        builder="conch",
    ),
    *(
        _vit(
            f"dinov2-{size[0]}",
            f"timm/vit_{size}_patch14_dinov2.lvd142m",
            f"vit_{size}_patch14_dinov2",
            dim=dim,
            licence="Apache-2.0",
            hub_file="model.safetensors",
            mpp=None,  # natural images have none
            options=SCALED,
            layout="resampled",
        )
        for size, dim in (("small", 384), ("base", 768), ("large", 1024))
    ),
    *_WITH_MEAN,
    *(
        replace(row, name=f"{row.name}-cls", dim=(row.dim or 0) // 2, pooling="cls", weights_file=row.weights_file)
        for row in _WITH_MEAN
    ),
)

PUBLISHED: dict[str, EncoderSpec] = {row.name: row for row in _ROWS}
"""Every published encoder by name."""

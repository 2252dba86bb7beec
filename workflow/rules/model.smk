# The labelled slides together: folds, one model a fold; then every slide's prediction.


rule split:
    input:
        # the labels of slides that are present reach this rule as a parameter, so that any other line changes nothing
        labels=ancient(SETTINGS["paths"]["labels"]),
        bags=bags_of_labelled,
    output:
        splits=RESULTS / "model" / "splits.csv",
        # changes with any bag: the jobs that read all of them depend on it instead
        bag_index=BAG_INDEX,
    log:
        RESULTS / "logs" / "split.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("split"),
        runtime=minutes_of("split"),
    params:
        version=artefact_version("split"),
        labels=labels_digest,
        given=settings.given_digest(SETTINGS),
        flags=flags("split"),
        bags=RESULTS / "bags",
    shell:
        "python -m pipeline split --digest {params.labels} --bags {params.bags:q} --splits {output.splits:q}"
        " --index {output.bag_index:q} {params.flags} 2> {log:q}"


rule train:
    input:
        splits=RESULTS / "model" / "splits.csv",
        bag_index=BAG_INDEX,
    output:
        weights=RESULTS / "model" / "fold-{fold}" / "weights.safetensors",
        anchor=RESULTS / "model" / "fold-{fold}" / "anchor.safetensors",
        model=RESULTS / "model" / "fold-{fold}" / "model.json",
        history=RESULTS / "model" / "fold-{fold}" / "history.csv",
        stability=RESULTS / "model" / "fold-{fold}" / "stability.csv",
    log:
        RESULTS / "logs" / "train" / "fold-{fold}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("train"),
        runtime=minutes_of("train"),
        gpu=gpu_of("train"),
        # a resource and not a parameter: another cache trains nothing again
        cache_mb=settings.cache_mb(SETTINGS),
    params:
        version=artefact_version("train"),
        flags=flags("train"),
        bags=RESULTS / "bags",
        folder=lambda wildcards, output: Path(output.model).parent,
    shell:
        "python -m pipeline train --fold {wildcards.fold} --splits {input.splits:q} --bags {params.bags:q}"
        " --folder {params.folder:q} --threads {threads} --gpus {resources.gpu}"
        " --cache-mb {resources.cache_mb} {params.flags} 2> {log:q}"


# Further models of the configuration's list, on the same splits; only their figures of merit are reported.
use rule train as train_compared with:
    output:
        weights=RESULTS / "compare" / "{model}" / "fold-{fold}" / "weights.safetensors",
        anchor=RESULTS / "compare" / "{model}" / "fold-{fold}" / "anchor.safetensors",
        model=RESULTS / "compare" / "{model}" / "fold-{fold}" / "model.json",
        history=RESULTS / "compare" / "{model}" / "fold-{fold}" / "history.csv",
        stability=RESULTS / "compare" / "{model}" / "fold-{fold}" / "stability.csv",
    log:
        RESULTS / "logs" / "train" / "{model}" / "fold-{fold}.log",


rule compare:
    input:
        splits=RESULTS / "model" / "splits.csv",
        bag_index=BAG_INDEX,
        models=model_files,
    output:
        predictions=RESULTS / "compare" / "{model}" / "predictions.csv",
    log:
        RESULTS / "logs" / "compare" / "{model}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("compare"),
        runtime=minutes_of("compare"),
    params:
        version=artefact_version("compare"),
        bags=RESULTS / "bags",
        models=lambda wildcards, output: Path(output.predictions).parent,
    shell:
        "python -m pipeline compare --splits {input.splits:q} --bags {params.bags:q} --models {params.models:q}"
        " --predictions {output.predictions:q} 2> {log:q}"


rule agreement:
    input:
        splits=RESULTS / "model" / "splits.csv",
        bag_index=BAG_INDEX,
        models=model_files,
    output:
        # not beside the models, a folder that is handed over: they name slides
        table=RESULTS / "agreement" / "{model}.csv",
        maps=RESULTS / "agreement" / "{model}.json",
    log:
        RESULTS / "logs" / "agreement" / "{model}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("agreement"),
        runtime=minutes_of("agreement"),
    params:
        version=artefact_version("agreement"),
        flags=flags("agreement"),
        bags=RESULTS / "bags",
        models=lambda wildcards: MODEL_FOLDERS[wildcards.model],
    shell:
        "python -m pipeline agreement --splits {input.splits:q} --index {input.bag_index:q} --bags {params.bags:q}"
        " --models {params.models:q} --table {output.table:q} --maps {output.maps:q} {params.flags} 2> {log:q}"


# One small file for all folds: every prediction depends on it, and thousands of slides times ten files make planning slow.
rule models:
    input:
        splits=RESULTS / "model" / "splits.csv",
        models=model_files,
    output:
        index=RESULTS / "model" / "models.json",
    log:
        RESULTS / "logs" / "models.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    params:
        folder=RESULTS / "model",
        folds=len(FOLDS),
    shell:
        "python -m pipeline models {params.folder:q} --folds {params.folds} --splits {input.splits:q}"
        " --index {output.index:q} 2> {log:q}"


rule predict:
    input:
        bag=RESULTS / "bags" / "{slide}.zarr.zip",
        models=RESULTS / "model" / "models.json",
    output:
        attention=RESULTS / "attention" / "{slide}.zarr.zip",
    log:
        RESULTS / "logs" / "predict" / "{slide}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("predict"),
        runtime=minutes_of("predict"),
        tmpdir=TMPDIR,
    params:
        version=artefact_version("predict"),
        flags=flags("predict"),
        splits=RESULTS / "model" / "splits.csv",
        models=RESULTS / "model",
    shell:
        "python -m pipeline predict-bag {input.bag:q} --splits {params.splits:q} --models {params.models:q}"
        " --attention {output.attention:q} {params.flags} 2> {log:q}"

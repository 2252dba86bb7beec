# What people read: a picture of every slide, and the report.


rule heatmap:
    input:
        slide=slide_path,
        attention=artefact_of("attention"),
        tiles=artefact_of("tiles"),
    output:
        png=report(
            REPORTS / "heatmaps" / "{shown}.png",
            caption="../report/heatmap.rst",
            category="Heatmaps",
            labels={"slide": "{shown}"},
        ),
        geojson=RESULTS / "attention" / "{shown}.geojson",
        view=RESULTS / "views" / "{shown}.json",
    log:
        RESULTS / "logs" / "heatmap" / "{shown}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("heatmap"),
        runtime=minutes_of("heatmap"),
        disk_mb=DISK_MB,
        tmpdir=TMPDIR,
        stalled_after_s=SETTINGS["slide"]["stalled_after_s"],
    params:
        version=artefact_version("heatmap"),
        slide=slide_place,
        flags=flags("heatmap"),
    shell:
        "python -m pipeline heatmap {params.slide:q} --attention {input.attention:q} --tiles {input.tiles:q}"
        " --png {output.png:q} --geojson {output.geojson:q} --view {output.view:q}"
        " --stalled-after-s {resources.stalled_after_s} {params.flags} 2> {log:q}"


rule report:
    input:
        cohort=RESULTS / "cohort.tsv",
        splits=RESULTS / "model" / "splits.csv",
        models=model_files,
        heatmaps=heatmaps(),
        agreement=agreement_files(),
        compared=[RESULTS / "compare" / name / "predictions.csv" for name in COMPARED],
    output:
        index=report(
            REPORTS / "index.html", caption="../report/index.rst", category="Report", labels={"file": "report"}
        ),
        predictions=report(
            REPORTS / "predictions.csv",
            caption="../report/predictions.rst",
            category="Tables",
            labels={"file": "predictions"},
        ),
        metrics=report(
            REPORTS / "metrics.json", caption="../report/metrics.rst", category="Tables", labels={"file": "metrics"}
        ),
        quarantine=report(
            REPORTS / "quarantine.tsv",
            caption="../report/quarantine.rst",
            category="Tables",
            labels={"file": "slides left out"},
        ),
        quality=REPORTS / "quality.tsv",
        # beside the models, so that the folder can be handed over
        card=RESULTS / "model" / "model_card.md",
        figures=RESULTS / "model" / "metrics.json",
    log:
        RESULTS / "logs" / "report.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("report"),
        runtime=minutes_of("report"),
    params:
        version=artefact_version("report"),
        flags=flags("report"),
        results=RESULTS,
        reports=REPORTS,
    shell:
        "python -m pipeline report --cohort {input.cohort:q} --splits {input.splits:q} --results {params.results:q}"
        " --reports {params.reports:q} {params.flags} 2> {log:q}"


rule strict:
    input:
        quarantine=REPORTS / "quarantine.tsv",
    output:
        passed=RESULTS / "strict.ok",
    log:
        RESULTS / "logs" / "strict.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    shell:
        "python -m pipeline strict {input.quarantine:q} --passed {output.passed:q} 2> {log:q}"

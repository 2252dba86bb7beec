# What people read: a picture of every slide, and the report.


rule heatmap:
    input:
        slide=slide_path,
        attention=RESULTS / "attention" / "{slide}.zarr.zip",
        tiles=RESULTS / "tiles" / "{slide}.zarr.zip",
    output:
        png=REPORTS / "heatmaps" / "{slide}.png",
        geojson=RESULTS / "attention" / "{slide}.geojson",
        view=RESULTS / "views" / "{slide}.json",
    log:
        RESULTS / "logs" / "heatmap" / "{slide}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        stalled_after_s=SETTINGS["slide"]["stalled_after_s"],
    params:
        version=STAGE_VERSIONS["heatmap"],
        flags=flags("heatmap"),
    shell:
        "python -m pipeline heatmap {input.slide:q} --attention {input.attention:q} --tiles {input.tiles:q}"
        " --png {output.png:q} --geojson {output.geojson:q} --view {output.view:q}"
        " --stalled-after-s {resources.stalled_after_s} {params.flags} 2> {log:q}"


rule report:
    input:
        cohort=RESULTS / "cohort.tsv",
        splits=RESULTS / "model" / "splits.csv",
        heatmaps=heatmaps(),
        compared=[RESULTS / "compare" / name / "predictions.csv" for name in COMPARED],
    output:
        index=REPORTS / "index.html",
        predictions=REPORTS / "predictions.csv",
        metrics=REPORTS / "metrics.json",
        quarantine=REPORTS / "quarantine.tsv",
        quality=REPORTS / "quality.tsv",
    log:
        RESULTS / "logs" / "report.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    params:
        version=STAGE_VERSIONS["report"],
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
